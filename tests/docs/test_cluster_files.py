"""The files on the page about clusters, checked by the tools that read them: Slurm's shell, Kubernetes, Ray."""

import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml
from pages import blocks, is_script
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from skipsearch.search.options import parse_options

PAGE = "docs/tutorial/cluster.md"
# The fields of a RayJob that the page uses, as its definition (ray.io/v1) has them.
JOB_FIELDS = {"entrypoint": str, "shutdownAfterJobFinishes": bool, "rayClusterSpec": dict}
GROUP_FIELDS = {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": dict,
                "template": dict}  # fmt: skip


def test_shellcheck_finds_nothing_in_the_batch_script(tmp_path):
    [script] = [block for block in blocks(PAGE, "bash") if is_script(block)]
    (tmp_path / "job.sh").write_text(script.text)
    command = [str(Path(sys.executable).with_name("shellcheck")), str(tmp_path / "job.sh")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def job():
    [block] = blocks(PAGE, "yaml")
    return yaml.safe_load(block.text)


def test_kubernetes_and_ray_can_read_the_job():
    found = job()
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
    assert {name: type(value) for name, value in found["spec"].items()} == JOB_FIELDS
    cluster = found["spec"]["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for group in (head, *workers):
        assert all(isinstance(value, GROUP_FIELDS[name]) for name, value in group.items())
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
        mounted = {mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    as_ray = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "it", "namespace": "here"}, "spec": cluster})
    resources = {name: kind["resources"] for name, kind in as_ray["available_node_types"].items()}
    assert resources["headgroup"]["CPU"] == 0  # The head measures nothing.
    [name] = resources.keys() - {"headgroup"}
    assert resources[name]["CPU"] == 8 and resources[name]["GPU"] == 1
    assert as_ray["available_node_types"][name]["max_workers"] == 8


def test_the_job_runs_a_search_in_the_volume_of_results():
    program, *words = shlex.split(job()["spec"]["entrypoint"])
    assert program == "skipsearch"
    parse_options(words)
    container = job()["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert words[words.index("--out") + 1] in {mount["mountPath"] for mount in container["volumeMounts"]}
