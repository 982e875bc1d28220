"""The sweep's jobs as Kubernetes gets them: its interface is a stand-in on this machine that runs each pod's command here."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from running import HANG_S

from mfcore.sweep import ROOT, jobs as sweep_jobs

STUDY = """
name: tiny
title: "Tiny: for testing"
data: {source: synthetic, seed: 3, n_slides: 10, n_annotations: 60}
patches: {size_px: 64, um_per_px: 0.25}
splits: {sizes: [1.0], n_folds: 1, by_domain: false}
encoders: ["random:test_vit", "timm:no_such_model"]
"""


class Cluster(BaseHTTPRequestHandler):
    """What Snakemake's plugin asks of Kubernetes. ``server.jobs``: each job's body and process, by name."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/jobs"):
            (container,) = body["spec"]["template"]["spec"]["containers"]
            name = body["metadata"]["name"]
            folder = self.server.folder / name
            folder.mkdir()
            with (folder / "log").open("w") as log:
                process = subprocess.Popen(
                    [*container["command"], *container["args"]],
                    cwd=folder,
                    env=self.server.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.server.jobs[name] = body, process
            if "share1of2" in container["args"][1] and not self.server.killed:
                self.server.killed = name
                os.killpg(process.pid, signal.SIGKILL)
        self._answer(body, 201)

    def do_GET(self) -> None:
        if self.path.endswith("/status"):
            body, process = self.server.jobs[self.path.split("/")[-2]]
            code = process.poll()
            status = {"active": 1} if code is None else {"failed": 1} if code else {"succeeded": 1}
            self._answer({"metadata": body["metadata"], "status": status})
        elif self.path.partition("?")[0].endswith("/log"):
            self._answer({"message": "previous terminated container not found"}, 400)  # as there is none
        else:
            name = self.path.rpartition("%3D")[2]
            code = self.server.jobs[name][1].poll()
            state = {"running": {}} if code is None else {"terminated": {"exitCode": code % 256}}
            container = {"name": "snakemake", "image": "", "imageID": "", "ready": True, "restartCount": 0, "state": state}
            self._answer({"items": [{"metadata": {"name": name}, "status": {"containerStatuses": [container]}}]})

    def do_DELETE(self) -> None:
        _, process = self.server.jobs.get(self.path.partition("?")[0].split("/")[-1], (None, None))
        if process and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        self._answer({"status": "Success"})

    def _answer(self, content: dict, code: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def cluster(tmp_path) -> Iterator[ThreadingHTTPServer]:
    """The stand-in; ``environment`` is what its commands run with."""
    if shutil.which("rsync") is None:
        pytest.skip("rsync isn't installed, by which Snakemake's storage copies records (Debian: apt-get install rsync)")
    for package in ("snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_fs"):
        pytest.importorskip(package, reason="Snakemake's plugins for Kubernetes aren't installed (extra kubernetes)")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    server.folder, server.jobs, server.killed = tmp_path / "pods", {}, ""
    server.folder.mkdir()
    config = tmp_path / "kubeconfig"
    named = {"name": "here"}
    contents = {"clusters": [{**named, "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}]}
    contents |= {"users": [{**named, "user": {}}], "contexts": [{**named, "context": {"cluster": "here", "user": "here"}}]}
    config.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "here", **contents}))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    server.environment = os.environ | {"KUBECONFIG": str(config), "PATH": path}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    for _, process in server.jobs.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_pods_ask_for_what_the_profile_says_and_their_records_arrive(cluster, tmp_path, started):
    """Every job is a pod with the image, the volumes, its memory, cores and GPU; one is killed and runs again."""
    (tmp_path / "tiny.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "mfcore.sweep", "embed", "--study", str(tmp_path / "tiny.yaml")]
    command += ["--results", str(tmp_path / "results"), "--data", str(tmp_path / "data"), "--encoders", "random:test_vit"]
    command += ["--profile", "kubernetes", "--shares", "2", "--seconds-between-status-checks", "1"]
    sweep = started(command, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = sweep.communicate(timeout=HANG_S)[0]
    logs = "\n".join(file.read_text() for file in cluster.folder.glob("*/log"))
    assert sweep.returncode == 0, output + logs
    folder = tmp_path / "results" / "tiny"
    assert {file.stem for file in folder.glob("jobs/*.json")} == {
        "01_extract_patches",
        *(f"{sweep_jobs.job_name('02', 'random:test_vit')}{share}" for share in ("", ".share0of2", ".share1of2")),
    }
    assert cluster.killed and len(cluster.jobs) >= 5
    for body, _ in cluster.jobs.values():
        (container,) = body["spec"]["template"]["spec"]["containers"]
        (rule,) = re.findall(r"--allowed-rules (\w+)", container["args"][1])
        asked = container["resources"]
        assert container["image"] == "mfcore"
        assert {"/mfcore/results", "/mfcore/data"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
        assert asked["requests"]["cpu"] == {"extract_patches": "7600m"}.get(rule, "3800m")
        attempt = int(re.findall(r"--attempt (\d)", container["args"][1])[0])
        assert asked["requests"]["memory"] == f"{(16000 if rule == 'extract_patches' else 24000) * attempt}M"
        assert asked.get("limits", {}).get("nvidia.com/gpu") == (None if rule == "extract_patches" else "1")


def test_the_profile_names_rules_that_there_are():
    """A rule that is renamed would lose what it asks for."""
    import yaml

    for file in (ROOT / "profiles").glob("*/config.yaml"):
        profile = yaml.safe_load(file.read_text())
        for key in ("set-resources", "set-threads", "groups"):
            assert set(profile.get(key, {})) <= {*sweep_jobs.RULES, "supplement"}, f"{file}: {key}"
        reads_predictions_of_tasks = {"downstream_tasks", "representations", "pretraining_studies", "supplement"}
        assert reads_predictions_of_tasks <= set(profile["set-resources"]), f"{file}: they read millions of rows"
