"""Names that stand in `trt_cls.artefacts.model_file`, for programs that import them from here."""

from trt_cls.artefacts.model_file import SUFFIXES, check_model_file, read_contract

__all__ = ["SUFFIXES", "check_model_file", "read_contract"]
