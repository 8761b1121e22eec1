"""Commands: errors become one sentence and an exit code, sub-commands are handed on, missing packages are named."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest

from ipt_triton import commands
from ipt_triton.cli import run_command, run_subcommand
from ipt_triton.errors import IptError
from ipt_triton.tasks import TaskError


def fail(error: Exception) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "status"),
    [(IptError("no server"), 1), (TaskError("no server"), 2), (OSError("no server"), 1), (KeyError("no server"), 1)],
)
def test_an_expected_error_is_a_sentence_and_an_exit_status(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: fail(error), KeyError) == status
    assert capsys.readouterr().err == f"error: {error}\n"


def test_an_unexpected_error_is_a_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: fail(ZeroDivisionError()), KeyError)


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (3, 3)])
def test_work_that_ends_well_gives_its_own_status(result: int | None, status: int) -> None:
    assert run_command(lambda: result) == status


def test_a_sub_command_gets_the_arguments_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_sub_command")
    module.main = lambda argv: 7 if list(argv) == ["--help", "x"] else 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_sub_command", module)
    assert run_subcommand("ipt-x", "Sub-commands.", {"go": "a_sub_command"}, ["go", "--help", "x"]) == 7
    with pytest.raises(SystemExit, match="2"):
        run_subcommand("ipt-x", "Sub-commands.", {"go": "a_sub_command"}, ["stay"])


@pytest.mark.parametrize(
    ("command", "package", "wanted"),
    [
        ("restore", "tqdm", "ipt-restore needs the package tqdm: pip install ipt-triton\n"),
        ("gateway", "fastapi", "ipt-gateway needs the package fastapi: pip install 'ipt-triton[gateway]'\n"),
        ("serve", "tritonclient", "ipt-serve needs the package tritonclient: pip install 'ipt-triton[serve]'\n"),
        ("train", "torch", "ipt-train needs the package torch: pip install 'ipt-triton[train]'\n"),
        ("export", "onnx", "ipt-export needs the package onnx: pip install 'ipt-triton[export]'\n"),
    ],
)
def test_a_command_without_its_packages_names_the_extra(
    command: str, package: str, wanted: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(commands, "importlib", SimpleNamespace(import_module=lacking))
    assert getattr(commands, command)() == 2
    assert capsys.readouterr().err == wanted


def test_a_module_of_ours_that_is_missing_is_no_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = SimpleNamespace(import_module=lambda name: importlib.import_module("ipt_triton.nowhere"))
    monkeypatch.setattr(commands, "importlib", missing)
    with pytest.raises(ModuleNotFoundError, match=r"ipt_triton\.nowhere"):
        commands.train()
