"""Launch scripts for several machines, against stand-ins that record how they are called."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[1]
TRAIN = ["--config=configs/household.py:smoke", '--workdir=/runs/a "b" \\c']
RECORD = f"""#!{sys.executable}
import json, os, sys
name = os.path.basename(sys.argv[0])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
"""


class Desk:
    """A copy of launch/ with a do-nothing venv.sh, and a PATH that begins with stand-ins."""

    def __init__(self, folder: Path):
        self.repo, self.bin, self.calls_file = folder / "repo", folder / "bin", folder / "calls"
        shutil.copytree(REPO / "launch", self.repo / "launch")
        self.bin.mkdir()
        self.calls_file.touch()
        self.stand_in(self.repo / "launch" / "venv.sh")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        path = f"{self.bin}:{os.environ['PATH']}"
        self.environment |= {"PATH": path, "CALLS": str(self.calls_file), "HOME": str(folder)}

    def stand_in(self, where: str | Path, then: str = "") -> None:
        """Makes a program that records its arguments and then runs `then`, Python."""
        path = self.bin / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORD + then)
        path.chmod(0o755)
        if path.name == "venv.sh":  # the scripts start it with bash
            path.write_text('echo "[\\"venv.sh\\", \\"$*\\"]" >> "$CALLS"\n')

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", f"launch/{script}", *arguments],
            cwd=self.repo,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def calls(self, name: str) -> list[list[str]]:
        """The recorded arguments of one program, call by call."""
        every = map(json.loads, self.calls_file.read_text().splitlines())
        return [call[1:] for call in every if call[0] == name]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def test_scripts_pass_shellcheck():
    scripts = [*(REPO / "launch").glob("*.sh"), REPO / ".ci" / "run"]
    program = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([program, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("local_multiprocess.sh", ["2", "configs/household.py"]),
        ("local_multiprocess.sh", ["two", "configs/household.py", "runs/a"]),
        ("slurm.sh", ["--nodes=2", "--config=configs/household.py"]),
        ("tpu_pod.sh", ["atod", "us-east5-b", "v6e-16", "--config=x", "--workdir=y"]),
        ("gke.sh", ["cpu", "image", *TRAIN]),
        ("gke.sh", ["tpu", "image"]),
    ],
)
def test_incomplete_commands_show_the_usage_and_start_nothing(desk, script, arguments):
    for program in ("gcloud", "kubectl", "sbatch", "srun"):
        desk.stand_in(program)
    done = desk.run(script, *arguments, SHARE="")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert f"launch/{script} " in done.stderr
    assert desk.calls_file.read_text() == ""


# ------------------------------------------------------------------- Slurm


def test_slurm_submits_itself(desk):
    desk.stand_in("sbatch")
    done = desk.run("slurm.sh", "--nodes=2", "--partition=gpu", "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert desk.calls("venv.sh") == [["requirements.txt launch/cuda.txt"]]
    assert desk.calls("sbatch") == [["--nodes=2", "--partition=gpu", "launch/slurm.sh", *TRAIN]]
    assert "+ sbatch --nodes=2" in done.stderr


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (130, True), (143, False), (1, False)])
def test_a_slurm_job_runs_everywhere_and_requeues_when_its_time_is_up(desk, code, requeued):
    desk.stand_in("srun", f"sys.exit({code})")
    desk.stand_in("scontrol")
    done = desk.run("slurm.sh", *TRAIN, SLURM_JOB_ID="17", SLURM_SUBMIT_DIR=str(desk.repo))
    assert done.returncode == code
    [srun] = desk.calls("srun")
    assert srun[-6:] == [".venv/bin/python", "-m", "atod_jax.train", *TRAIN, "--distributed"]
    assert desk.calls("scontrol") == [["requeue", "17"]] * requeued
    assert "+ srun " in done.stderr


def test_slurm_starts_one_process_per_gpu():
    options = dict(
        line.removeprefix("#SBATCH --").split("=")
        for line in (REPO / "launch" / "slurm.sh").read_text().splitlines()
        if line.startswith("#SBATCH") and "=" in line
    )
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"].startswith("INT@")


# ------------------------------------------------------------------- TPU


ANSWER = """
queue = os.environ["CALLS"] + "." + sys.argv[4]  # lines "exit-code output"; the last one stays
lines = open(queue).read().splitlines() if os.path.exists(queue) else ["0 "]
with open(queue, "w") as file:
    file.write("\\n".join(lines[1:] or lines))
code, _, text = lines[0].partition(" ")
print(text)
sys.exit(int(code))
"""
SLICE = ["atod", "us-east5-b", "v6e-16"]


class Cloud:
    """A desk whose gcloud answers from a list per verb."""

    def __init__(self, desk: Desk, **answers: list[str]):
        self.desk = desk
        desk.stand_in("gcloud", ANSWER)
        desk.stand_in("sleep")
        for verb, lines in answers.items():
            Path(f"{desk.calls_file}.{verb}").write_text("\n".join(lines))
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
            subprocess.run(["git", *command], cwd=desk.repo, check=True)

    def train(self, **environment: str) -> subprocess.CompletedProcess:
        return self.desk.run("tpu_pod.sh", *SLICE, *TRAIN, SHARE="10.0.0.2:/atod", **environment)

    def verbs(self) -> list[str]:
        return [call[3] for call in self.desk.calls("gcloud") if call[3] != "describe"]

    def call(self, verb: str) -> list[str]:
        """The arguments after the verb of its first call."""
        return next(call[4:] for call in self.desk.calls("gcloud") if call[3] == verb)


def test_a_new_slice_is_made_filled_and_trained_on(desk):
    cloud = Cloud(desk, describe=["1 ", "0 READY"])
    done = cloud.train()
    assert done.returncode == 0, done.stderr
    assert cloud.verbs() == ["create", "scp", "ssh"]
    assert all(call[:3] == ["compute", "tpus", "tpu-vm"] for call in desk.calls("gcloud"))
    machine = ["--accelerator-type=v6e-16", "--version=v2-alpha-tpuv6e", "--spot"]
    assert cloud.call("create") == ["atod", *machine, "--zone=us-east5-b"]
    name, workers, command, zone = cloud.call("ssh")
    assert (name, workers, zone) == ("atod", "--worker=all", "--zone=us-east5-b")
    assert shlex.split(command)[-3:] == ["10.0.0.2:/atod", *TRAIN]
    assert "tpu_host.sh" in command
    assert "+ gcloud compute tpus tpu-vm ssh atod" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("tpu-vm delete atod --zone=us-east5-b")


@pytest.mark.parametrize(
    ("kind", "image"),
    [("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5"),
     ("v4-8", "tpu-ubuntu2204-base")],
)  # fmt: skip
def test_each_kind_of_slice_has_its_image(desk, kind, image):
    cloud = Cloud(desk, describe=["1 ", "0 READY"])
    arguments = ("atod", "z", kind, *TRAIN)
    done = desk.run("tpu_pod.sh", *arguments, SHARE="s", CREATE="--reserved")
    assert done.returncode == 0, done.stderr
    assert f"--version={image}" in cloud.call("create")
    assert "--reserved" in cloud.call("create")
    assert "--spot" not in cloud.call("create")


def test_a_preempted_slice_is_replaced_when_there_is_one(desk):
    states = ["READY", "READY", "PREEMPTED", "PREEMPTED", "-", "-", "CREATING", "READY"]
    answers = ["1 " if state == "-" else f"0 {state}" for state in states]
    cloud = Cloud(desk, describe=answers, ssh=["255 ", "0 "], create=["1 ", "0 "])
    done = cloud.train()
    assert done.returncode == 0, done.stderr
    assert cloud.verbs() == ["scp", "ssh", "delete", "create", "create", "scp", "ssh"]
    assert cloud.call("delete") == ["atod", "--quiet", "--zone=us-east5-b"]


def test_a_failed_run_is_not_tried_again(desk):
    cloud = Cloud(desk, describe=["0 READY"], ssh=["2 "])
    assert cloud.train().returncode == 2
    assert cloud.verbs() == ["scp", "ssh"]


def test_no_slice_to_be_had_ends_at_once(desk):
    cloud = Cloud(desk, describe=["1 "], create=["1 "])
    assert cloud.train().returncode == 1
    assert cloud.verbs() == ["create"]


def test_a_stopped_slice_is_left_alone(desk):
    cloud = Cloud(desk, describe=["0 STOPPED"])
    done = cloud.train()
    assert done.returncode == 1
    assert "error: the slice is STOPPED" in done.stderr
    assert cloud.verbs() == []


@pytest.mark.parametrize("mounted", [True, False])
def test_a_tpu_host_mounts_installs_and_trains(desk, mounted):
    host = desk.calls_file.parent / "host"
    packed = host / "pack" / "atod_jax"
    shutil.copytree(desk.repo / "launch", packed / "launch")
    desk.stand_in(packed / ".venv" / "bin" / "python")
    with tarfile.open(host / "atod_jax.tar.gz", "w:gz") as archive:
        archive.add(packed, "atod_jax")
    desk.stand_in("mountpoint", f"sys.exit({int(not mounted)})")
    desk.stand_in("sudo")
    desk.stand_in("pkill", "sys.exit(1)")
    desk.stand_in("pgrep", "sys.exit(1)")
    desk.stand_in("python3")
    uv = desk.calls_file.parent / ".local" / "bin" / "uv"  # HOME is that folder
    desk.stand_in(uv, "print('/opt/python3.12')")
    script = str(desk.repo / "launch" / "tpu_host.sh")
    done = subprocess.run(
        ["bash", script, "10.0.0.2:/atod", *TRAIN],
        cwd=host, env=desk.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    mounts = [call for call in desk.calls("sudo") if call[0] == "mount"]
    share = ["mount", "-t", "nfs", "-o", "hard", "10.0.0.2:/atod", "/mnt/atod"]
    assert mounts == [share] * (not mounted)
    assert desk.calls("venv.sh") == [["requirements.txt launch/tpu.txt"]]
    assert desk.calls("python") == [["-m", "atod_jax.train", *TRAIN, "--distributed"]]


# ------------------------------------------------------------------- GKE


def train_container(job: dict) -> dict:
    [replicated] = job["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    [container] = pod["containers"]
    claims = {v["name"]: v.get("persistentVolumeClaim") for v in pod["volumes"]}
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    assert claims[mounts["/runs"]] == {"claimName": "atod-runs"}
    return container


@pytest.mark.parametrize("accelerator", ["tpu", "gpu"])
def test_gke_ends_the_old_job_and_applies_the_new(desk, accelerator):
    desk.stand_in("kubectl", 'open(os.environ["CALLS"] + ".stdin", "w").write(sys.stdin.read())')
    done = desk.run("gke.sh", accelerator, "docker.pkg.dev/a/b&c:1", *TRAIN)
    assert done.returncode == 0, done.stderr
    delete, apply = desk.calls("kubectl")
    assert delete[:3] == ["delete", "jobset", f"atod-{accelerator}"]
    assert "--ignore-not-found" in delete
    assert apply == ["apply", f"--selector=accelerator={accelerator}", "--filename=-"]
    assert "+ kubectl apply" in done.stderr
    jobs = list(yaml.safe_load_all(Path(f"{desk.calls_file}.stdin").read_text()))
    by_label = {job["metadata"]["labels"]["accelerator"]: job for job in jobs}
    assert set(by_label) == {"tpu", "gpu"}
    container = train_container(by_label[accelerator])
    assert container["image"] == "docker.pkg.dev/a/b&c:1"
    assert container["args"] == TRAIN


def test_jobsets_restart_and_know_their_hosts():
    text = (REPO / "launch" / "gke_jobset.yaml").read_text()
    assert len(text.splitlines()) < 60
    for job in yaml.safe_load_all(text):
        assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
        assert job["spec"]["failurePolicy"]["maxRestarts"] > 0
        work = job["spec"]["replicatedJobs"][0]["template"]["spec"]
        assert work["parallelism"] == work["completions"]
        container = train_container(job)
        command = container["command"]
        assert command[:3] == [".venv/bin/python", "-m", "atod_jax.train"]
        if "--distributed" in command:  # JAX finds the hosts of a TPU slice by itself
            assert "google.com/tpu" in container["resources"]["limits"]
            continue
        name = job["metadata"]["name"]
        hosts = {f"--num_processes={work['parallelism']}", "--process_id=$(INDEX)"}
        assert set(command[3:]) == hosts | {f"--coordinator={name}-train-0-0.{name}:8476"}
        assert container["env"][0]["name"] == "INDEX"


# ------------------------------------------------------------------- one machine


PYTHON = """
if sys.argv[1] == "-c":
    print(5123)
    sys.exit()
import signal, time
process = next(a for a in sys.argv if a.startswith("--process_id=")).partition("=")[2]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("process", process, flush=True)
code, seconds = os.environ["P" + process].split(",")
time.sleep(float(seconds))
sys.exit(int(code))
"""


@pytest.fixture
def three(desk):
    """Runs three processes; each ends with a code after some seconds."""
    desk.stand_in(desk.repo / ".venv" / "bin" / "python", PYTHON)

    def run(*plans: str) -> tuple[int, float]:
        plan = {f"P{k}": text for k, text in enumerate(plans)}
        start = time.monotonic()
        command = ["3", "configs/household.py:smoke", "runs/three", "--config.seed=4"]
        done = desk.run("local_multiprocess.sh", *command, **plan)
        assert done.stdout.splitlines() == ["process 0"]
        return done.returncode, time.monotonic() - start

    return run


def test_local_processes_know_each_other(desk, three):
    assert three("0,0", "0,0", "0,0")[0] == 0
    calls = [call for call in desk.calls("python") if call[0] == "-m"]
    assert sorted(call[-1] for call in calls) == [f"--process_id={k}" for k in range(3)]
    workdir = desk.repo / "runs" / "three"
    run = ["--config=configs/household.py:smoke", f"--workdir={workdir}", "--config.seed=4"]
    for call in calls:
        shared = ["--coordinator=127.0.0.1:5123", "--num_processes=3"]
        assert call[:-1] == ["-m", "atod_jax.train", *run, *shared]
    assert (workdir / "process-2.log").read_text() == "process 2\n"


def test_a_failed_process_ends_the_others_and_is_what_is_told(three):
    code, seconds = three("0,50", "3,1", "0,50")
    assert code == 3
    assert seconds < 30


def test_processes_that_stop_in_good_order_are_waited_for(three):
    assert three("143,3", "143,0", "143,0")[0] == 143


def test_stopping_the_script_stops_every_process(desk, tmp_path):
    desk.stand_in(desk.repo / ".venv" / "bin" / "python", PYTHON)
    command = ["bash", "launch/local_multiprocess.sh", "2", "configs/household.py", "runs/two"]
    environment = desk.environment | {"P0": "0,50", "P1": "0,50"}
    with subprocess.Popen(
        command, cwd=desk.repo, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as script:
        script.stdout.readline()  # process 0 runs
        log = desk.repo / "runs" / "two" / "process-1.log"
        while not log.is_file() or not log.read_text():
            time.sleep(0.1)
        script.terminate()
        assert script.wait(timeout=30) == 143
