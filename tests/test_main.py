"""`atod` and `python -m atod_jax`: the list of programs, their help, and mistakes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import atod_jax
from atod_jax import __main__, config


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    code = 0
    try:
        __main__.main(list(arguments))
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_programs_are_listed_with_what_they_do(arguments, capsys):
    code, out, _ = said(capsys, *arguments)
    assert code == 0
    for name in __main__.PROGRAMS:
        (line,) = (line for line in out.splitlines() if line.split()[:1] == [name])
        assert len(line.split()) > 3


def test_every_program_of_the_package_is_listed():
    (folder,) = map(Path, atod_jax.__path__)
    programs = {
        path.stem
        for path in folder.glob("[!_]*.py")
        if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert programs == set(__main__.PROGRAMS)


def test_the_list_is_there_at_once():
    """It reads the programs instead of importing them, and JAX with them."""
    code = (
        "import sys; from atod_jax import __main__ as m; m.listing(); print('jax' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


@pytest.mark.parametrize("name", sorted({*__main__.PROGRAMS} - {*__main__.WITHOUT_OPTIONS}))
def test_help_prints_the_flags_and_every_option(name, capsys):
    code, out, err = said(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert "--workdir" in out
    missing = [path for path in config.catalogue() if f"  {path} =" not in out]
    assert missing == []


def test_help_shows_the_values_of_a_config(capsys):
    _, out, _ = said(capsys, "train", "--config=quickstart", "--help")
    assert "total_steps = 60 " in out
    assert "student.path = household/student" in out


@pytest.mark.parametrize(
    ("name", "flag"),
    [("compare", "--out"), ("bench", "--hardware"), ("view", "--most"), ("study", "--plan")],
)
def test_programs_without_a_run_have_flags_only(name, flag, capsys):
    code, out, _ = said(capsys, name, "--help")
    assert code == 0
    assert flag in out


@pytest.mark.parametrize("arguments", [("--version",), ("train", "--version")])
def test_the_version(arguments, capsys):
    assert said(capsys, *arguments) == (0, f"atod_jax {atod_jax.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian",), "error: there is no program 'trian'"),
        (("train", "--workdri=x"), "did you mean --workdir?"),
        (("train", "--workdir=x"), "--config is missing"),
        (("train", "--workdir=x", "--config=quikstart"), "did you mean 'quickstart'?"),
        (("train", "--config=quickstart", "--config.optim.lrr=1"), "--workdir is missing"),
        (
            ("train", "--config=quickstart", "--workdir=x", "--config.optim.lrr=1"),
            "did you mean --config.optim.lr?",
        ),
        (("train", "--config=quickstart", "--workdir=x", "extra"), "flags begin with --"),
        (("train", "--config=quickstart", "--workdir=x", "--hardware=h100"), "add --dry_run"),
    ],
)
def test_mistakes_are_answered_with_the_fix(arguments, message, capsys):
    code, _, err = said(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")


def test_a_module_of_the_current_folder_can_be_named(tmp_path, monkeypatch):
    """The script of an installed package does not begin its path with the folder one is in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/somewhere"])
    __main__.see_folder()
    __main__.see_folder()
    assert sys.path == ["/somewhere", str(tmp_path)]


def test_python_m_starts_it(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "atod_jax", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout == f"atod_jax {atod_jax.__version__}\n"


def test_ctrl_c_while_a_program_loads_ends_it_at_once_and_in_silence(tmp_path):
    program = [sys.executable, "-m", "atod_jax.train", "--config=quickstart"]
    command = ["env", "--default-signal=INT", *program, f"--workdir={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while b"jaxlib" not in Path(f"/proc/{process.pid}/maps").read_bytes():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert (process.returncode, said) == (-signal.SIGINT, b"")
