"""Choose the devices that a training run computes on, in this process or in several.

Each device has a replica of the network. A global batch is split among the replicas and their gradients are summed, by
TensorFlow's MirroredStrategy (one process) or MultiWorkerMirroredStrategy (several). On JAX, Keras's DataParallel does
the same within one process, and no strategy is needed here.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import ClotkitError, ClusterError, UsageError, one_line
from clotkit.members.loading import ENVIRONMENT, MIXED_FLOAT16, quiet, start_keras
from clotkit.progress import Log
from clotkit.training.rendezvous import is_address, killed_after, rendezvous

WAIT_S = 1800.0  # for the other workers: a queue's jobs may start minutes apart
CLUSTER = "TF_CONFIG"  # the environment variable that TensorFlow and its launchers use
EXAMPLE = '{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}'


@dataclass(frozen=True)
class DistributedContext:
    """The processes and replicas that train one network together; by default a single process.

    Every worker is one process. The worker of rank 0 is the chief, which writes the member.
    """

    strategy: Any = None  # a tf.distribute.Strategy, or None when Keras trains on its own
    rank: int = 0  # number of this process
    world_size: int = 1  # processes
    local_replicas: int = 1  # replicas in each process

    @property
    def replicas(self) -> int:
        """Return the number of replicas in all processes."""
        return self.local_replicas * self.world_size

    @property
    def is_chief(self) -> bool:
        """Tell if this process writes the member."""
        return self.rank == 0

    def all_gather(self, numbers: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the numbers of every worker, int64[world_size, k]; each worker waits here for all others."""
        rows = np.zeros((self.world_size, len(numbers)), np.int64)
        rows[self.rank] = numbers
        return rows if self.world_size == 1 else self._all_reduce(rows)

    def _all_reduce(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sum the arrays [world_size, k] of all workers: one replica of each worker contributes its array."""
        import tensorflow

        def value_of(replica: Any) -> Any:
            contributes = replica.replica_id_in_sync_group % self.local_replicas == 0
            return tensorflow.constant(rows if contributes else np.zeros_like(rows))

        values = self.strategy.experimental_distribute_values_from_function(value_of)
        return np.asarray(self.strategy.reduce("SUM", values, axis=None), np.int64)

    @contextmanager
    def cluster_errors(self) -> Iterator[None]:
        """Raise ClusterError, with one line, for TensorFlow's errors about a lost worker."""
        try:
            yield
        except Exception as error:
            if self.world_size == 1 or not is_cluster_error(error):
                raise
            raise ClusterError(
                f"worker {self.rank} of {self.world_size}: another worker is gone; start all of them again with the "
                f"same command: training resumes after the last epoch that all of them have ({_cause(error)})"
            ) from error


@contextmanager
def training_scope(devices: Sequence[str] | None = None, context: DistributedContext | None = None) -> Iterator[None]:
    """Build and fit networks inside on these devices, in half precision on GPUs.

    Args:
        devices: Keras's device names; None means every GPU, or the CPU when there is none.
        context: if it has a strategy, networks inside are replicated by it. Without one, several devices on JAX share
            each batch through Keras's DataParallel.

    Raises:
        UsageError: there are several devices, and the backend is neither TensorFlow nor JAX.
    """
    import keras

    names = list(devices or keras.distribution.list_devices())
    before = keras.config.dtype_policy()
    if names[0].startswith(("gpu", "cuda")):
        keras.config.set_dtype_policy(MIXED_FLOAT16)
    try:
        with _data_parallel(names) if context is None or context.strategy is None else context.strategy.scope():
            yield
    finally:
        keras.config.set_dtype_policy(before)


@contextmanager
def _data_parallel(names: Sequence[str]) -> Iterator[None]:
    """Enter Keras's DataParallel where several devices are to share a batch on JAX."""
    import keras

    backend = keras.backend.backend()
    if len(names) > 1 and backend not in {"jax", "tensorflow"}:
        raise UsageError(f"backend {backend}: {len(names)} devices; several devices need tensorflow or jax")
    several = len(names) > 1 and backend == "jax"
    with keras.distribution.DataParallel(devices=list(names)).scope() if several else nullcontext():
        yield


def create_context(strategy: str, log: Log = lambda _: None, wait_s: float = WAIT_S) -> DistributedContext:
    """Start Keras and set up the processes and replicas that a recipe's training.strategy asks for.

    Args:
        strategy: "mirrored": one replica per device of this process, GPUs or else CPUs. "auto": the same if there are
            several devices, and Keras alone on one device or another backend. "multi_worker": the processes that
            TF_CONFIG lists.
        log: gets a line when workers are missing.
        wait_s: seconds for the other workers to answer, and again for TensorFlow to build the cluster; SIGALRM ends
            the process after that.

    Raises:
        UsageError: TF_CONFIG is missing or malformed, or the backend is not TensorFlow.
        ClusterError: the workers cannot be reached.
    """
    if strategy == "multi_worker":
        addresses, rank = read_cluster(os.environ.get(CLUSTER))
        return _multi_worker(addresses, rank, wait_s, log)
    start_keras()
    if strategy == "mirrored":
        _check_backend(strategy)
        return _mirrored()
    import keras

    several = len(keras.distribution.list_devices()) > 1
    return _mirrored() if several and keras.backend.backend() == "tensorflow" else DistributedContext()


def _mirrored() -> DistributedContext:
    import tensorflow

    devices = tensorflow.config.list_logical_devices("GPU") or tensorflow.config.list_logical_devices("CPU")
    strategy = tensorflow.distribute.MirroredStrategy([device.name for device in devices])
    return DistributedContext(strategy, local_replicas=len(devices))


def _multi_worker(addresses: Sequence[str], rank: int, wait_s: float, log: Log) -> DistributedContext:
    """Build the strategy of several processes; TensorFlow wants it before anything is computed."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    _check_backend("multi_worker")
    rendezvous(addresses, rank, wait_s, log)
    log(
        f"all {len(addresses)} workers answer; TensorFlow has {wait_s:g} s to build its cluster, "
        "then SIGALRM ends this worker"
    )
    try:
        with quiet(), killed_after(wait_s):
            import tensorflow

            strategy = tensorflow.distribute.MultiWorkerMirroredStrategy()
    except Exception as error:
        raise ClusterError(
            f"worker {rank} of {len(addresses)}, at {addresses[rank]}: TensorFlow could not build the cluster: "
            f"{one_line(error)}; check that the port is free, and {CLUSTER}"
        ) from error
    start_keras()
    return DistributedContext(strategy, rank, len(addresses), strategy.num_replicas_in_sync // len(addresses))


def _check_backend(strategy: str) -> None:
    with quiet():
        import keras
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise UsageError(
            f"backend {backend}: training.strategy is {strategy!r}, which needs tensorflow; set it to 'auto'"
        )


def read_cluster(text: str | None) -> tuple[tuple[str, ...], int]:
    """Read the addresses of all workers, and the rank of this one, from the value of TF_CONFIG.

    Raises UsageError when it is missing, or is not what TensorFlow expects of workers.
    """
    needed = f'training.strategy "multi_worker" needs {EXAMPLE} in it'
    if not text:
        raise UsageError(f"{CLUSTER} is not set; {needed}")
    try:
        settings = json.loads(text)
        addresses, task = settings["cluster"]["worker"], settings["task"]
        kind, rank = task["type"], task["index"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{CLUSTER} cannot be read: {type(error).__name__}: {one_line(error)}; {needed}") from error
    valid = isinstance(addresses, list) and all(isinstance(one, str) and is_address(one) for one in addresses)
    if not valid or len(set(addresses)) != len(addresses) or set(settings["cluster"]) != {"worker"}:
        raise UsageError(
            f"{CLUSTER}: cluster is {json.dumps(settings['cluster'])}; allowed: a list of different workers, each with "
            f"a port of 1 to 65535; {needed}"
        )
    if kind != "worker" or type(rank) is not int or not 0 <= rank < len(addresses):
        raise UsageError(
            f"{CLUSTER}: task is {json.dumps(task)}; allowed: type worker, index 0 to {len(addresses) - 1}; {needed}"
        )
    return tuple(addresses), rank


def is_cluster_error(error: BaseException) -> bool:
    """Tell if TensorFlow raised an error because a worker, or the connection to it, is gone.

    TensorFlow reports some lost workers only by the text "Collective ops is aborted", so that is looked for too.
    """
    if isinstance(error, ClotkitError):
        return False
    from tensorflow import errors

    kinds = (errors.UnavailableError, errors.AbortedError, errors.CancelledError, errors.DeadlineExceededError)
    return isinstance(error, kinds) or "Collective ops is aborted" in str(error)


def _cause(error: BaseException) -> str:
    """Return the one line of a long TensorFlow error that names the cause."""
    lines = [line.strip() for line in str(error).splitlines()]
    line = next((line for line in lines if "aborted" in line), lines[-1] if lines else "")
    return f"{type(error).__name__}: {line[:160]}"
