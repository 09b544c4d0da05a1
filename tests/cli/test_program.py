from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from trt_cls.cli import COMMANDS, Invocation, main, program
from trt_cls.errors import RequestError
from trt_cls.files import results_folder
from trt_cls.urls import location


def modules_after(*arguments: str) -> set[str]:
    code = f"import sys; from trt_cls.cli import main; main({list(arguments)}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_imports_click_and_little_else() -> None:
    found = modules_after("--help")
    assert {name for name in found if name.startswith("trt_cls")} == {
        "trt_cls", "trt_cls.cli", "trt_cls.errors", "trt_cls.version",
    }  # fmt: skip
    # 129 on Python 3.11, of which Python itself brings 68 and click 36; numpy would bring 116 more, torch 1,000.
    assert len(found) < 160


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_tells_its_flags_without_torch(name: str) -> None:
    assert not {"torch", "onnx", "onnxruntime", "numpy"} & modules_after(name, "--help")


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_commands_own_help_begins_as_its_line_in_the_list(name: str) -> None:
    command = program.get_command(click.Context(program), name)
    assert (command.help or "").split()[0] == COMMANDS[name].split()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evalute"], 'error: no command "evalute"; did you mean "evaluate"?'),
        (["xyz"], 'error: no command "xyz"; trt-cls --help lists them'),
        (["spec", "chekc"], 'error: no command "chekc"; did you mean "check"?'),
        (["spec", "xyz"], 'error: no command "xyz"; trt-cls spec --help lists them'),
        (["train"], "error: Missing option '-e'"),
        (["compare", "a.onnx"], "error: Missing argument 'B'."),
        (["infer", "-m", "absent.onnx", "-i", "absent.png", "--top-k", "0"], "error: Invalid value for '--top-k'"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize(("arguments", "heading"), [([], "Make a model:"), (["spec"], "Commands:")])
def test_a_group_alone_prints_its_help(arguments: list[str], heading: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    alone = capsys.readouterr()
    assert heading in alone.out.splitlines()
    assert alone.err == ""
    assert main([*arguments, "--help"]) == 0
    assert capsys.readouterr().out == alone.out


def test_the_shell_completes_commands_and_flags() -> None:
    completions = ShellComplete(program, {"obj": Invocation([])}, "trt-cls", "_TRT_CLS_COMPLETE")
    found = [[each.value for each in completions.get_completions(words, start)] for words, start in (
        ([], "ev"), (["spec"], "sh"), (["infer"], "--top"), (["evalute"], ""),
    )]  # fmt: skip
    assert found[:2] == [["evaluate"], ["show"]]
    assert "--top-k" in found[2]
    assert "train" in found[3]  # after an unknown command, the commands


def test_a_key_is_ignored_with_a_line_and_verbose_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["infer", "-m", "absent.onnx", "-i", "absent.png", "-k", "secret"]
    assert main(arguments) == 2
    plain = capsys.readouterr().err
    assert plain.splitlines()[0] == "-k/--key is ignored: models are not encrypted"
    assert "Traceback" not in plain
    assert main([*arguments, "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("flags", [["benchmark", "m.onnx", "--seconds"], ["choose", "--from", "c.csv", "--max-loss"]])
def test_a_number_that_is_not_finite_is_refused(
    flags: list[str], number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, number]) == 2
    assert "expected a finite number" in capsys.readouterr().err


SECRET = "0123456789abcdef"
URL = f"https://u:{SECRET}@host/x?X-Amz-Signature={SECRET}"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([URL], 'no command "https://host/x"'),
        (["spec", "check", "spec.txt", URL], "unexpected extra argument (https://host/x)"),
        (["spec", "check", URL], "https://host/x: no such file"),
        (["infer", "-m", URL, "-i", "a.png"], "https://host/x: its suffix"),
        (["infer", "-m", "a.onnx", "-i", f"camera:{URL}", "-i", "a.png"], "-i camera:https:/host/x: 2 sources"),
        (["infer", "-m", "a.onnx", "-i", "a.png", "--provider", URL], "'https://host/x' is not one of"),
        (["evaluate", "--shard", URL], "--shard https://host/x without -o"),
        (["infer", "-m", "a.onnx", "-i", "a.png", f"--{URL}"], "No such option '--https://host/x'"),
    ],
)
def test_no_error_shows_the_secrets_of_urls(
    arguments: list[str], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "-v"]) == main(arguments) == 2
    err = capsys.readouterr().err
    assert found in err
    assert SECRET not in err


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["infer", "-m", "a.onnx", "-i", "a.png", "-r", ""], "an empty path found, expected"),
        (["infer", "-m", "a.onnx", "-i", "a.tar", "-o", ""], "an empty path found, expected"),
        (["infer", "-m", "", "-i", "a.png"], "an empty path found, expected"),
        (["spec", "init", ""], "an empty path found, expected"),
        (["infer", "-m", "a.onnx", "-i", ""], "no image to label; expected"),
        (["infer", "-m", "a.onnx", "-i", "a.png", "-r", "file://host/x"], "file://host/x found, expected"),
        (["demo", "-r", "s3://bucket/results"], "s3://bucket/results: a URL found, expected"),
    ],
)
def test_a_path_that_names_no_place_here_is_refused_and_nothing_is_made(
    arguments: list[str],
    found: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert found in err
    assert err.count("\n") == 1
    assert os.listdir() == []


def test_a_results_folder_is_none_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("s3://bucket/results", "https://host/results"):
        with pytest.raises(RequestError, match=f"{url}: a URL found, expected a folder; name one"):
            results_folder(location(url))
    assert os.listdir() == []
