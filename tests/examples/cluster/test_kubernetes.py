"""kubernetes.yaml and kubeflow.yaml: their fields, and their commands in two pods here."""

import re
import signal
from typing import Any

import pytest
import yaml

from fiber.cli import parser
from fiber.training.checkpoint.folder import checkpoints_in
from fiber.training.distributed.launch import SAVE_SECONDS
from tests.examples.cluster.local_cluster import (
    EXAMPLES,
    FEW,
    check_finished,
    end_of,
    small_run,
)
from tests.kill_ranks import free_port, last_step, wait_for_port

SERVICE, JOB = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
TRAIN_JOB = yaml.safe_load((EXAMPLES / "kubeflow.yaml").read_text())

# Fields of the API that the files use: a class for a value of it, a value for the only one that is
# right, a list for lists of such.
MOUNT = {"name": str, "mountPath": str}
CLAIM = {"claimName": str}
VOLUME = {
    "name": str,
    "persistentVolumeClaim": CLAIM,
    "emptyDir": {"medium": "Memory", "sizeLimit": str},
}
VARIABLE = {"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}
RESOURCES = {"limits": {"cpu": str, "memory": str, "nvidia.com/gpu": int}}
METADATA = {"name": str}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [VARIABLE],
    "resources": RESOURCES,
    "volumeMounts": [MOUNT],
}
POD = {
    "subdomain": str,
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": int,
    "containers": [CONTAINER],
    "volumes": [VOLUME],
}
RULE = {
    "action": str,
    "onExitCodes": {"containerName": str, "operator": "In", "values": [int]},
    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
}
JOB_FIELDS = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": METADATA,
    "spec": {
        "completionMode": "Indexed",
        "completions": int,
        "parallelism": int,
        "backoffLimit": int,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [RULE]},
        "template": {"spec": POD},
    },
}
SERVICE_FIELDS = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": METADATA,
    "spec": {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": str},
    },
}
# Kubeflow Trainer 2.3, pkg/apis/trainer/v1alpha1/trainjob_types.go.
POD_PATCH = {
    "terminationGracePeriodSeconds": int,
    "containers": [{"name": "node", "volumeMounts": [MOUNT]}],
    "volumes": [VOLUME],
}
JOB_PATCH = {"name": "node", "template": {"spec": {"template": {"spec": POD_PATCH}}}}
TRAIN_JOB_FIELDS = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainJob",
    "metadata": METADATA,
    "spec": {
        "runtimeRef": METADATA,
        "trainer": {
            "image": str,
            "numNodes": int,
            "resourcesPerNode": RESOURCES,
            "command": [str],
            "args": [str],
            "env": [VARIABLE],
        },
        "runtimePatches": [
            {
                "manager": str,
                "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [JOB_PATCH]}}},
            }
        ],
    },
}


def wrong_fields(value: Any, fields: Any, path: str = "") -> list[str]:
    """List what of an object of the API is not as in a table of fields."""
    if isinstance(fields, dict):
        if not isinstance(value, dict):
            return [f"{path}: expected fields, got {value!r}"]
        unknown = [f"{path}.{name}: no such field" for name in value.keys() - fields.keys()]
        return unknown + [
            wrong
            for name, inner in value.items()
            if name in fields
            for wrong in wrong_fields(inner, fields[name], f"{path}.{name}")
        ]
    if isinstance(fields, list):
        if not isinstance(value, list):
            return [f"{path}: expected a list, got {value!r}"]
        inner = enumerate(value)
        return [w for at, each in inner for w in wrong_fields(each, fields[0], f"{path}[{at}]")]
    right = type(value) is fields if isinstance(fields, type) else value == fields
    return [] if right else [f"{path}: expected {fields}, got {value!r}"]


def test_wrong_fields_are_found():
    fields = {"a": int, "b": [{"c": "d"}], "e": {"f": str}}
    assert wrong_fields({}, fields) == []
    assert wrong_fields({"a": 1, "b": [{"c": "d"}], "e": {"f": "1"}}, fields) == []
    assert wrong_fields({"a": "1"}, fields) == [".a: expected <class 'int'>, got '1'"]
    assert wrong_fields({"b": [{}, {"c": "x"}]}, fields) == [".b[1].c: expected d, got 'x'"]
    assert wrong_fields({"b": {}, "e": 3, "g": 1}, fields) == [
        ".g: no such field",
        ".b: expected a list, got {}",
        ".e: expected fields, got 3",
    ]


def container_of(name: str) -> dict[str, Any]:
    if name == "kubernetes":
        return JOB["spec"]["template"]["spec"]["containers"][0]
    return TRAIN_JOB["spec"]["trainer"]


def pod_of(name: str) -> dict[str, Any]:
    if name == "kubernetes":
        return JOB["spec"]["template"]["spec"]
    patch = TRAIN_JOB["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]
    return patch["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_fields_are_those_of_the_api():
    assert wrong_fields(SERVICE, SERVICE_FIELDS) == []
    assert wrong_fields(JOB, JOB_FIELDS) == []
    assert wrong_fields(TRAIN_JOB, TRAIN_JOB_FIELDS) == []


def test_fields_are_those_of_published_schemas():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is missing")
    for document in (SERVICE, JOB):
        # The oldest that the file names, and a newer one.
        for version in ("1.31", "1.37"):
            validate.validate(document, version, strict=True)
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow is missing")
    assert models.TrainerV1alpha1TrainJob.from_dict(TRAIN_JOB).to_dict() == TRAIN_JOB


def test_pods_find_each_other():
    name, pod = JOB["metadata"]["name"], JOB["spec"]["template"]["spec"]
    variables = {each["name"]: each.get("value") for each in container_of("kubernetes")["env"]}
    # The name of a pod is JOB-INDEX.SERVICE.
    assert SERVICE["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == SERVICE["metadata"]["name"]
    assert re.fullmatch(rf"{name}-0\.{pod['subdomain']}:\d+", variables["RENDEZVOUS"])
    assert int(variables["NODES"]) == JOB["spec"]["completions"] == JOB["spec"]["parallelism"]


@pytest.mark.parametrize("name", ["kubernetes", "kubeflow"])
def test_a_pod_has_time_to_save_and_mounts_what_it_names(name):
    pod, container = pod_of(name), container_of(name)
    assert pod["terminationGracePeriodSeconds"] > SAVE_SECONDS
    mounts = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    folders = [word.partition("=")[2] for word in container["args"] if "=/" in word]
    folders += [each["value"] for each in container["env"] if each.get("value", "")[:1] == "/"]
    assert len(folders) == 4
    for folder in folders:
        assert any(folder.startswith(mount) for mount in mounts.values()), folder


def test_bad_input_is_not_tried_again():
    exit_codes, conditions = JOB["spec"]["podFailurePolicy"]["rules"]
    train = JOB["spec"]["template"]["spec"]["containers"][0]["name"]
    assert exit_codes["action"] == "FailJob" and conditions["action"] == "Ignore"
    assert exit_codes["onExitCodes"]["containerName"] == train
    assert exit_codes["onExitCodes"]["values"] == [2]


def command_in_pod(name: str, index: int, port: int) -> tuple[list[str], dict[str, str]]:
    """Return command and environment as Kubernetes fills them in, for two pods at localhost."""
    container = container_of(name)
    variables = {each["name"]: each.get("value", "") for each in container["env"]}
    if name == "kubernetes":
        controller = "b0b5e1b4"
        variables |= {"NODES": "2", "RENDEZVOUS": f"localhost:{port}", "JOB": controller}
        variables |= {"JOB_COMPLETION_INDEX": str(index)}
    else:
        # The plugin `torch` of the trainer.
        variables |= {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "auto", "PET_NODE_RANK": str(index)}
        variables |= {"PET_MASTER_ADDR": "localhost", "PET_MASTER_PORT": str(port)}
    command = [
        re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], word)
        for word in container["command"]
    ]
    return command, variables


@pytest.mark.parametrize("name", ["kubernetes", "kubeflow"])
def test_the_whole_command_is_read(name):
    command, _ = command_in_pod(name, 0, 29400)
    options = parser().parse_args(command[1:] + container_of(name)["args"])
    assert (options.recipe, options.nodes, options.rendezvous) == (
        "pretrain",
        (2, 2),
        "localhost:29400",
    )
    assert options.job and options.resume


@pytest.mark.slow
def test_kubeflow_trains_in_two_pods(cluster, data, tmp_path):
    output, port = tmp_path / "run", free_port()
    jobs = []
    for index in (0, 1):
        command, variables = command_in_pod("kubeflow", index, port)
        jobs.append(cluster.start(command + small_run(data, output), output, variables))
    check_finished(output, FEW, end_of(*jobs))


@pytest.mark.slow
def test_kubernetes_replaces_an_evicted_pod(cluster, data, tmp_path):
    output, port, steps = tmp_path / "run", free_port(), 12

    def start(index):
        command, variables = command_in_pod("kubernetes", index, port)
        return cluster.start(command + small_run(data, output, steps=steps), output, variables)

    first = start(0)
    wait_for_port(port)
    second = start(1)
    first.wait_for_step(3)
    second.process.send_signal(signal.SIGTERM)
    end_of(second, code=75)
    saved = max(each.step for each in checkpoints_in(output / "checkpoints"))
    assert saved == last_step(output) < steps
    printed = end_of(first, start(1))
    assert f"after step {saved}" in printed
    check_finished(output, steps, printed)
