"""Two nodes with networks, host names and /etc/hosts of their own, in namespaces of Linux."""

import shlex
import shutil
import subprocess
from contextlib import closing

import pytest

from tests import kill_ranks
from tests.examples.cluster.local_cluster import (
    FEW,
    LocalCluster,
    check_finished,
    end_of,
    small_run,
)

pytestmark = pytest.mark.slow

# Everything is in namespaces of this process, and gone with it.
NAMESPACES = [
    *("unshare", "--user", "--map-root-user", "--net", "--mount"),
    *("--pid", "--mount-proc", "--fork", "--kill-child"),
]

# As on Debian, the name of a node is that of its loopback interface, and the other node does not
# know it. The name of node 2 sorts first, which makes it the node of rank 0. It starts first, and
# waits for node 1, which hosts the rendezvous.
SCRIPT = """
set -e
mount -t tmpfs none /run
mkdir -p /run/nodes
ip netns add n1
ip netns add n2
ip -n n1 link add eth0 type veth peer name eth0 netns n2
for node in 1 2; do
  ip -n "n$node" addr add "10.9.0.$node/24" dev eth0
  ip -n "n$node" link set eth0 up
  ip -n "n$node" link set lo up
done
printf '127.0.0.1 localhost\\n127.0.1.1 zz\\n' > /run/nodes/1
printf '127.0.0.1 localhost\\n127.0.1.1 aa\\n' > /run/nodes/2
start() {
  ip netns exec "n$1" unshare --uts --mount sh -ec '
    mount --bind "$1" /etc/hosts
    hostname "$2"
    shift 2
    exec "$@"' sh "/run/nodes/$1" "$2" $TRAIN &
}
start 2 aa
second=$!
sleep 2
start 1 zz
wait $!
wait $second
"""


def test_hosts_that_do_not_know_each_others_names(made_once, tmp_path):
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare and ip")
    probe = "mount -t tmpfs none /run && ip netns add a && ip -n a link add eth0 type veth"
    tried = subprocess.run(
        [*NAMESPACES, "sh", "-c", probe], capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        pytest.skip(f"namespaces are not allowed: {tried.stderr.strip()}")
    data, output = made_once("kill_ranks_data", kill_ranks.make_data), tmp_path / "run"
    train = ["fiber", "train", *small_run(data, output), "--processes", "1", "--nodes", "2"]
    train += ["--rendezvous", "10.9.0.1:29400", "--job", "two-hosts"]
    assert shlex.join(train) == " ".join(train)
    with closing(LocalCluster(tmp_path)) as cluster:
        command = [*NAMESPACES, "bash", "-c", SCRIPT]
        # gloo itself would take the address of the host name.
        environment = {"TRAIN": " ".join(train), "GLOO_SOCKET_IFNAME": "eth0"}
        job = cluster.start(command, output, environment)
        check_finished(output, FEW, end_of(job))
