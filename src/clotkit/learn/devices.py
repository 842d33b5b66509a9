"""The devices that training computes on: half precision on a GPU, a copy of the network on each of several."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clotkit.errors import UsageError

HALF = "mixed_float16"  # as Keras names it: weights stay float32


@contextmanager
def training(devices: Sequence[str] | None = None) -> Iterator[None]:
    """Networks that are built and fitted inside use all `devices` (Keras's names; None: every GPU, else the CPU).

    Several get a share of each batch: TensorFlow's MirroredStrategy, or Keras's DataParallel on JAX. On a GPU layers
    compute in half precision. Raises UsageError for several devices on another backend.
    """
    import keras

    names = list(devices or keras.distribution.list_devices())
    before = keras.config.dtype_policy()
    if names[0].startswith(("gpu", "cuda")):
        keras.config.set_dtype_policy(HALF)
    try:
        with _spread(names):
            yield
    finally:
        keras.config.set_dtype_policy(before)


@contextmanager
def _spread(names: Sequence[str]) -> Iterator[None]:
    if len(names) < 2:
        yield
        return
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow

        with tensorflow.distribute.MirroredStrategy(list(names)).scope():
            yield
    elif backend == "jax":
        with keras.distribution.DataParallel(devices=list(names)).scope():
            yield
    else:
        raise UsageError(f"backend {backend}: {len(names)} devices; on several, tensorflow or jax is needed")
