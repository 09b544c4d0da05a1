"""TAO's commands: each flag of TAO's ends in its action or its one line, and a notebook's cells run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from support.tiny_models import COLORS, write_images, write_onnx
from trt_cls import cli
from trt_cls.artefacts.model_file import read_contract
from trt_cls.cli import COMMANDS, classification_tf1, flags_of, program
from trt_cls.cli.tao_flags import ANSWERS, COMMON, LAUNCHERS, OLDER, PASSED, VERBS, markdown

DOC = Path(__file__).parents[2] / "docs/coming-from-tao.md"

# As NVIDIA's parsers declare them: tao_tensorflow1_backend, makenet's scripts and its wrapper; tao_deploy,
# classification_tf1. "#": a switch.
WRAPPER = "--gpus --gpu_index -np --num_processes --use_amp# --log_file --multi-node# --mpirun-arg -k --key"
TAO = {
    "train": "-e --experiment_spec_file -r --results_dir --init_epoch -v# --verbose# -c --classmap",
    "evaluate": "-e --experiment_spec -r --results_dir -cm --classmap -m --model_path -i --image_dir -l -b "
    "--batch_size -c",
    "inference": "-m --model_path -e --experiment_spec -cm --classmap -c -i --image -d --image_dir -b --batch_size -r "
    "-v# --verbose# --results_dir",
    "prune": "-m --model -o --output_file --results_dir -r -n --normalizer -eq --equalization_criterion -pg -v# "
    "--pruning_granularity -pth --pruning_threshold -nf --min_num_filters -el --excluded_layers",
    "export": "-m --model -o --output_file -e --experiment_spec --gen_ds_config# --classmap_json --static_batch_size "
    "--target_opset --results_dir --cal_json_file -v# --verbose# --force_ptq# --cal_data_file --cal_image_dir "
    "--data_type -s# --strict_type_constraints# --cal_cache_file --batches --max_workspace_size --max_batch_size "
    "--batch_size --min_batch_size --opt_batch_size --onnx_route --engine_file --backend --is_byom#",
    "gen_trt_engine": "-m --model_path -e --experiment_spec -r --results_dir --data_type --cal_image_dir "
    "--cal_data_file --cal_cache_file --engine_file --min_batch_size --opt_batch_size --max_batch_size --batch_size "
    "--batches -v# --max_workspace_size -s# --strict_type_constraints# --verbose#",
    "calibration_tensorfile": "-o --output -e --experiment_spec_file -m --max_batches -v# --use_validation_set#",
    "info": "-v# --verbose#",
}  # fmt: skip
OLDER_FLAGS = {
    "train": "-m --pretrained_model",
    "evaluate": "-d --dataset -pm --pretrained_model --trt_precision",
    "inference": "-pm --trt_precision",
    "prune": "-pm --pm --pretrained_model",
    "export": "-t --export_type --input_dims --outputs --trt_precision -d --output",
}
"""Of the Transfer Learning Toolkit."""
VALUES = {"normalizer": "max", "equalization_criterion": "union", "data_type": "fp16", "model": "model.onnx"}
"""For flags that do not take a 1."""


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines of trt-cls, each parsed by its command, which is not run; the folder has a spec and a model."""
    (tmp_path / "spec.txt").write_text("model_config { }")
    write_onnx(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    seen = []

    def parse(state: cli.Invocation) -> None:
        root = program.make_context("trt-cls", list(state.arguments), obj=state)
        command = program.get_command(root, state.arguments[0])
        assert command is not None
        with command.make_context(command.name, state.arguments[1:], parent=root):
            seen.append(state.arguments)

    monkeypatch.setattr(classification_tf1, "run", parse)
    return seen


def call(line: str) -> int:
    return classification_tf1.main(shlex.split(line))


SMALLEST = {
    "train": "-e spec.txt -r out",
    "evaluate": "-e spec.txt",
    "calibration_tensorfile": "-e spec.txt -o x",
    "prune": "-m model.onnx -o x.hdf5",
    "inference": "-m model.onnx -i x.png",
    "info": "",
}


def flags_of_trt_cls(verb: str) -> set[str]:
    command = program.get_command(click.Context(program), VERBS[verb].command)
    return flags_of(command) if command else set()


@pytest.mark.parametrize("verb", list(TAO))
def test_every_flag_of_taos_is_in_the_table_and_ends_in_its_action_or_its_line(
    verb: str, lines: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    smallest = SMALLEST.get(verb, "-m model.onnx")
    known = {name: flag for flag in (*VERBS[verb].flags, *COMMON) for name in flag.names}
    switches = {
        typed.rstrip("#"): typed.endswith("#") for typed in f"{TAO[verb]} {OLDER_FLAGS.get(verb, '')} {WRAPPER}".split()
    }
    assert {name: known[name].takes == "switch" for name in switches} == switches
    for name, flag in known.items():
        value = "" if flag.takes == "switch" else VALUES.get(flag.name, "spec.txt" if "spec" in flag.name else "1")
        status = call(f"{verb} {smallest} {name} {value}")
        out, err = capsys.readouterr()
        assert "No such option" not in err
        if flag.action == "refused":
            assert (status, err) == (2, f"error: {'/'.join(flag.names)}: {flag.note}\n")
        elif verb == "calibration_tensorfile":
            assert (status, out.count("\n"), err) == (0, 1, "")
        else:
            assert status == 0, err
            assert (f"{'/'.join(flag.names)} is ignored: {flag.note}" in err) == (flag.action == "ignored")
            assert flag.action not in PASSED or flag.to in lines.pop()


@pytest.mark.parametrize("verb", [verb for verb in VERBS if VERBS[verb].command])
def test_trt_cls_answers_a_flag_of_taos_with_what_to_type(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = VERBS[verb].command
    foreign = [flag for other in ("export", "train") if other != verb for flag in VERBS[other].flags]
    for flag in (*VERBS[verb].flags, *COMMON, *foreign):
        for name in {*flag.names} - flags_of_trt_cls(verb):
            if flag in foreign and not name.startswith("--"):
                continue
            assert cli.main([command, name, "1"]) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: {name} is "), error
            assert error.count("\n") == 1
            assert "classification_tf1" in error or flag.note in error


@pytest.mark.parametrize("command", [*LAUNCHERS, *OLDER, *ANSWERS, *(verb for verb in VERBS if verb not in COMMANDS)])
def test_trt_cls_answers_a_command_of_taos_with_what_to_type(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([command], [command, "classification_tf1", "train", "-e", "spec.txt"]):
        assert cli.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith(f'error: "{command}" is TAO\'s')
        assert error.count("\n") == 1
        expected = "trt-cls train …, or classification_tf1 train …"
        assert (expected in error) == ((command in LAUNCHERS and len(words) > 1) or command == "tlt-train")


@pytest.mark.parametrize("verb", [verb for verb in VERBS if VERBS[verb].command])
def test_a_flag_of_trt_cls_is_answered_with_the_line_that_takes_it(
    verb: str, lines: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    known = [name for flag in (*VERBS[verb].flags, *COMMON) for name in flag.names]
    for name in flags_of_trt_cls(verb):
        if any(other.startswith(name) for other in known):  # argparse takes the short form
            continue
        assert call(f"{verb} {SMALLEST.get(verb, '-m model.onnx')} {name} 1 --gpu_index 0 2") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"expected CUDA_VISIBLE_DEVICES=0,2 trt-cls {VERBS[verb].command} " in error
        assert error.endswith(f" {name} 1")
    assert lines == []


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("train -e spec.txt -r out -k KEY --gpus 2 --use_amp", "train -e spec.txt -r out --gpus 2"),
        ("train -e spec.txt -r out --gpus 2 -np -1 --init_epoch 3", "train -e spec.txt -r out --gpus 2 --init-epoch 3"),
        ("train -e spec.txt -r out -np 3", "train -e spec.txt -r out --gpus 3"),
        ("train --experiment_spec spec.txt --results out", "train -e spec.txt -r out"),  # argparse's short forms
        ("evaluate -e spec.txt -i images -b 64 -r out", "evaluate -e spec.txt -r out --dataset images -b 64"),
        ("evaluate -e spec.txt -m model.etlt", "evaluate -e spec.txt -m model.onnx"),
        ("train -e spec.txt -r out --resume", "train -e spec.txt -r out --resume"),
        ("evaluate -e spec.txt -d images -pm model", "evaluate -e spec.txt -m model.onnx --dataset images"),
        ("prune -m model.onnx -o a/p.hdf5 -el x y", "prune -m model.onnx -o a/p.safetensors -el x -el y"),
        ("prune -m model.onnx -o p -eq union", "prune -m model.onnx -o p.safetensors -eq union"),
        ("inference -m model.onnx -i a.png -cm c.json", "infer -m model.onnx -cm c.json -i a.png"),
        ("inference -m model.onnx -d images", "infer -m model.onnx -i images -r images"),
        ("inference -m model.onnx -i a.png -d images", "infer -m model.onnx -i a.png -i images -r images"),
        ("inference -m model.onnx -d images -r out", "infer -m model.onnx -i images -r out"),
        ("export -m model.onnx", "export -m model.onnx -o model.onnx --builder none"),
        ("export -m model.onnx -o final", "export -m model.onnx -o final.onnx --builder none"),
        (
            "export -m model.onnx -o a/x.etlt --engine_file y.trt --data_type fp16 --gen_ds_config",
            "export -m model.onnx --data_type fp16 --engine y.engine -o a/x.onnx --deepstream a/deepstream",
        ),
        (
            "export -m model.onnx -o q.onnx --data_type int8 --cal_image_dir images --batches 10",
            "export -m model.onnx --data_type int8 -o q.onnx --calibration-images images --calibration-batches 10 "
            "--builder none",
        ),
        (
            "gen_trt_engine -m model.onnx -e spec.txt --data_type int8 --batches 10 --batch_size 24 --max_batch_size 8",
            "export -m model.onnx -e spec.txt --data_type int8 --max-batch 8 -o model_int8.onnx --engine model.engine "
            "--calibration-batches 15",
        ),
        ("gen_trt_engine -m model --engine_file g.plan", "export -m model.onnx --engine g.plan -o model.onnx"),
        ("info", "doctor"),
        (
            "gen_trt_engine -m model.onnx --data_type fp32 --batches 10 --batch_size 4 --engine_file x.trt",
            "export -m model.onnx --data_type fp32 --engine x.engine -o model.onnx",
        ),
    ],
)  # fmt: skip
def test_a_command_of_taos_becomes_one_of_trt_cls(typed: str, becomes: str, lines: list[list[str]]) -> None:
    Path("images").mkdir()
    assert call(typed) == 0
    assert lines == [becomes.split()]


def test_gpu_index_chooses_the_gpus_and_a_clash_of_calibration_is_a_line(
    lines: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train -e spec.txt -r out --gpu_index 0 2 -k KEY") == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,2"
    assert call("export -m model.onnx --batches 10 --data_type fp16") == 0
    error = capsys.readouterr().err
    assert "-k/--key is ignored: models are not encrypted" in error
    assert "$ trt-cls train -e spec.txt -r out" in error
    assert "--batches is ignored: only int8 is calibrated" in error


def test_a_spec_that_names_a_missing_file_of_taos_takes_ours_beside_it(lines: list[list[str]]) -> None:
    text = (
        'train_config {{ pretrained_model_path: "{0}" train_dataset_path: "." val_dataset_path: "." '
        'optimizer {{ sgd {{ }} }} reg_config {{ type: "None" }} lr_config {{ cosine {{ learning_rate: 0.1 }} }} }}'
        'eval_config {{ eval_dataset_path: "." model_path: "{0}" }} model_config {{ }}'
    )
    Path("spec.txt").write_text(text.format("w/resnet_080.hdf5"))
    assert call("evaluate -e spec.txt") == 2  # neither is there
    Path("w").mkdir()
    Path("w/resnet_080.safetensors").write_bytes(b"x")
    ours = "w/resnet_080.safetensors"
    assert call("train -e spec.txt -r out") == call("evaluate -e spec.txt") == 0
    assert [line[-2:] for line in lines] == [
        ["--set", f"train_config.pretrained_model_path={ours}"],
        ["--set", f"eval_config.model_path={ours}"],
    ]
    Path("w/resnet_080.hdf5").write_bytes(b"x")  # TAO's own is there
    assert call("evaluate -e spec.txt") == 0
    assert "--set" not in lines[-1]
    Path("spec.txt").write_text(text.format("hub"))  # no file
    Path("hub.onnx").write_bytes(b"x")
    assert call("train -e spec.txt -r out") == 0
    assert "--set" not in lines[-1]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("exprot", 'no command "exprot"; did you mean "export"?'),
        ("train -e spec.txt", "required: -r/--results_dir"),
        ("--gpus 2", 'no command "--gpus"'),
        ("tao exprot", 'no command "exprot"; did you mean "export"?'),
        ("train -e spec.txt -r out --gpu 2", "ambiguous option: --gpu could match --gpus, --gpu_index"),
        ("train -e spec.txt -r out --fd 3", 'train: "--fd" is no flag of TAO\'s; leave it out; --help lists'),
        ("train -e spec.txt -r out --gpus 0", "argument --gpus: invalid positive int value: '0'"),
        ("train -e spec.txt -r out --gpu_index one", "invalid GPU number value: 'one'"),
        ("export -m model.onnx --target_opset twelve", "invalid positive int value: 'twelve'"),
        ("export -m model.onnx --dta_type int8", 'did you mean "--data_type"?'),
        ("export -m model.onnx -t int8", "type --data_type fp32, fp16 or int8"),
        ("prune -m model.onnx -o x --excluded_layer a --pruning_treshold 1", 'did you mean "--pruning_threshold"?'),
        ("inference -m model.onnx", "name one with -i, or a folder with -d"),
        ("inference -m w.hdf5 -i a.png", "w.hdf5: no such file, nor w.safetensors; expected one of the two"),
        ("inference -m modle.etlt -i a.png", 'did you mean "model.onnx"?'),
        ("export -m .", '"." is a folder; expected the name of a file'),
        ("export -m model.onnx -o /", '"/" is a folder; expected the name of a file'),
        ("prune -m model.onnx -o new/", '"new/" is a folder; expected the name of a file, as new/model'),
        ("export -m model.onnx --is_byom", 'train arch: "timm/NAME"'),
        ("export -m model.onnx --batches few", "invalid positive int value: 'few'"),
        ("export -m model.onnx --deepstream DIR --foo bar", "--builder none --deepstream DIR"),
        ("export -m model.onnx --data_type int4", "'int4' is not one of 'fp32', 'fp16', 'int8'"),
    ],
)
def test_a_wrong_call_is_one_line(
    typed: str, message: str, lines: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(typed) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("before", [
    "tao model classification_tf1 train", "tao deploy classification_tf1 train", "tlt classification train",
    "tlt-train classification", "--gpus 2 train", "tao -v model --gpus 2 classification_tf1 train",
])  # fmt: skip
def test_launchers_and_flags_before_the_command_are_taken(before: str, lines: list[list[str]]) -> None:
    assert call(f"{before} -e spec.txt -r out") == 0
    assert [word for word in lines[0] if word != "-v"] == shlex.split(
        f"train -e spec.txt -r out {'--gpus 2' * ('--gpus' in before)}"
    )


@pytest.mark.parametrize("value", ["tlt", "deploy", "run", "export"])
def test_a_value_before_the_command_is_no_command(value: str, lines: list[list[str]]) -> None:
    assert call(f"--gpus 1 -k {value} -r {value} train -e spec.txt") == 0
    assert lines[0][:5] == ["train", "-e", "spec.txt", "-r", value]


@pytest.mark.parametrize("command", list(ANSWERS))
def test_another_command_of_taos_is_answered(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"tao {command} -m x") == 2
    assert capsys.readouterr().err == f'error: "{command}" is TAO\'s; expected {ANSWERS[command]}\n'


def test_what_is_ignored_is_said(lines: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("export", "prune", "gen_trt_engine"):
        for flag in ("--gpus", "-np"):
            assert call(f"{verb} {SMALLEST.get(verb, '-m model.onnx')} {flag} 2") == 0
            assert f"is ignored: {verb} is one process" in capsys.readouterr().err
            assert "--gpus" not in lines.pop()
    assert call("export -m model.onnx --foo 3 16") == 0
    assert "--foo 3 16 is ignored: TAO's export ignores" in capsys.readouterr().err


def test_init_epoch_resumes_a_training_that_has_come_there(lines: list[list[str]]) -> None:
    Path("out").mkdir()
    Path("out/train_state.pt").write_bytes(b"x")
    Path("out/training.csv").write_text("epoch,acc\n1,0.5\n2,0.6\n")
    for epoch in (1, 3, 4):
        assert call(f"train -e spec.txt -r out --init_epoch {epoch}") == 0
    assert [line[5:] for line in lines] == [["--init-epoch", "1"], ["--resume"], ["--init-epoch", "4"]]


def test_as_a_module_it_is_the_program() -> None:
    command = [sys.executable, "-m", "trt_cls.cli.classification_tf1", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("classification_tf1, ")


def test_help_lists_commands_and_flags_with_what_becomes_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("") == call("--help") == 0
    shown = capsys.readouterr().out
    assert [name for name in VERBS if f"\n  {name} " not in shown] == []
    for verb in VERBS:
        assert call(f"{verb} --help") == 0
        assert "models are not encrypted" in capsys.readouterr().out


def test_the_documentation_has_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--markdown") == 0
    assert capsys.readouterr().out == markdown()
    assert DOC.read_text(encoding="utf-8").endswith(markdown())


NOTEBOOK = """
train -e spec.cfg -r out -k $KEY --gpus 1 --use_amp
evaluate -e spec.cfg -k $KEY
prune -m out/weights/resnet_002.hdf5 -o pruned/resnet.hdf5 -eq union -pth 0.6 -k $KEY --results_dir logs
train -e retrain.cfg -r out_retrain -k $KEY
evaluate -e retrain.cfg -m out_retrain/weights/resnet_002.hdf5 -k $KEY
inference -e retrain.cfg -m out_retrain/weights/resnet_002.hdf5 -k $KEY -b 4 -d images/red -cm out_retrain/classmap.json
inference -e retrain.cfg -m out_retrain/weights/resnet_002.hdf5 -k $KEY -i images/red/0.png -cm out_retrain/classmap.json
calibration_tensorfile -e retrain.cfg -m 10 -o export/calibration.tensor
export -m out_retrain/weights/resnet_002.hdf5 -o export/final_model -k $KEY --classmap_json out_retrain/classmap.json --gen_ds_config
export -m out_retrain/weights/resnet_002.hdf5 -o export/int8.etlt -k $KEY --data_type int8 --cal_image_dir images --batches 2 --cal_cache_file export/int8.bin -v
gen_trt_engine -m export/final_model.onnx -e retrain.cfg -r export -k $KEY --batch_size 4 --max_batch_size 4 --batches 3 --data_type int8 --cal_data_file export/calibration.tensor --cal_cache_file export/int8.bin --cal_image_dir images --engine_file export/final_model.trt
evaluate -m export/final_model.onnx -e retrain.cfg -i images -r evaluation -b 4 -c out_retrain/classmap.json
inference -m export/final_model.onnx -e retrain.cfg -i images/blue -r labels -b 4
"""  # noqa: E501
"""The cells of NVIDIA's classification notebook, the launcher taken off, with a smaller network's names."""

SPEC = """
model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,16,16" use_batch_norm: True }}
train_config {{
  train_dataset_path: "images" val_dataset_path: "images" pretrained_model_path: "{pretrained}"
  preprocess_mode: "torch" batch_size_per_gpu: 4 n_epochs: 2 n_workers: 1 enable_random_crop: False
  optimizer {{ sgd {{ lr: 0.01 momentum: 0.9 }} }}
  reg_config {{ type: "L2" scope: "Conv2D,Dense" weight_decay: 0.0001 }}
  lr_config {{ step {{ learning_rate: 0.01 step_size: 50 gamma: 0.5 }} }}
}}
eval_config {{ eval_dataset_path: "images" model_path: "{model}" top_k: 1 batch_size: 4 n_workers: 1 }}
"""


@pytest.mark.slow
def test_a_notebook_runs_cell_by_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("torch", "onnxruntime", "tensorrt_rtx"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"), per_class=4)
    Path("spec.cfg").write_text(SPEC.format(pretrained="", model="out/weights/resnet_002.hdf5"))
    Path("retrain.cfg").write_text(SPEC.format(pretrained="pruned/resnet.hdf5", model="out_retrain/resnet_002.hdf5"))
    for cell in NOTEBOOK.strip().splitlines():
        assert call(cell.replace("$KEY", "nvidia_tlt")) == 0, (cell, capsys.readouterr().err)
    assert len(Path("images/red/result.csv").read_text().splitlines()) == 4  # TAO's place
    assert len(Path("labels/result.csv").read_text().splitlines()) == 4
    pruned, whole = Path("pruned/resnet.safetensors"), Path("out/weights/resnet_002.safetensors")
    assert pruned.stat().st_size < whole.stat().st_size
    assert Path("out_retrain/weights/resnet_002.safetensors").stat().st_size == pytest.approx(
        pruned.stat().st_size, 0.1
    )
    found = {name: read_contract(Path("export", name)).precision for name in (
        "final_model.onnx", "int8.onnx", "final_model_int8.onnx", "final_model.engine",
    )}  # fmt: skip
    assert list(found.values()) == ["fp32", "int8", "int8", "int8"]
    assert json.loads(Path("evaluation/results.json").read_text())["num_images"] == 4 * len(COLORS)
    assert "network-type=1" in Path("export/deepstream/nvinfer_config.txt").read_text()
