"""Run an ONNX file as a function of tiles, with onnxruntime: the input as its recipe describes it.

No Keras here. Nothing is fetched: external data lies beside the file, and operators are those of onnxruntime.
"""

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.batching import Predictor, TileArray, is_out_of_memory, noise
from clotkit.config import OnnxConfig
from clotkit.errors import ConfigError, WeightsError, one_line
from clotkit.members.onnx.header import OnnxHeader, checked_header, model_sha256

BATCH_TILES = 32  # default number of tiles of a batch
PROBE_TILES = 2  # of the first run: a batch of 1 would hide a batch size that the export has fixed
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # in this order, those that onnxruntime has
CPU = PROVIDERS[-1]
ROW_TYPES = {f"tensor({kind})" for kind in ("float", "float16", "bfloat16", "double", "int32", "int64")}
TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "uint8": "tensor(uint8)"}
# What onnxruntime puts before its reason: its code, the file, and the place in its own source.
PREAMBLE = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed: ?)?|/onnxruntime_src/.*\) (?=\w)"
)
TOO_NEW = re.compile(
    r"support for domain (?P<domain>\S+) is till opset (?P<opset>\d+)|max supported IR version: (?P<ir>\d+)"
)

Rows = npt.NDArray[np.float32]
Prepare = Callable[[TileArray], npt.NDArray[Any]]


class OnnxModel:
    """An ONNX file as a function of any number of tiles: uint8[n, S, S, 3] -> float32[n, K].

    Rows are what `config.output` says: logits are not turned into probabilities. Batches have the file's own size if it
    is fixed, else at most `batch_tiles`, halved when memory runs out.
    `width` is K, `provider` what computes, `notes` lines for reports; predicting may add one.
    """

    def __init__(
        self, path: Path, config: OnnxConfig, tile_px: int, threads: int = 0, batch_tiles: int = BATCH_TILES
    ) -> None:
        """Load the file and run it once.

        `threads` is the number of threads of an operator, 0 for one a core. Raises ConfigError for a file, an input or
        an output that does not fit.
        """
        self.path, self.config, self.header = path, config, checked_header(path)
        self._session = _open_session(path, self.header, threads)
        self.provider = self._session.get_providers()[0]
        self.notes = _provider_notes(self.provider)
        self._input, fixed, side_px = _checked_input(self._session, config, tile_px, path)
        self._output = _chosen_output(self._session, config, path)
        self._prepare = preparation(config, side_px)
        # On the CPU the rows are the same, bit for bit, in batches of any size; on a GPU each size is tuned anew.
        self._predict = Predictor(
            [self._forward], fixed or batch_tiles, self.notes, pads=bool(fixed) or self.provider != CPU
        )
        self.notes, self.pads = self._predict.notes, self._predict.pads
        self.fixed_batch = fixed
        self.width = self._probe(tile_px)

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the file and its external data."""
        return model_sha256(self.path)

    @property
    def runtime(self) -> str:
        """The version of onnxruntime."""
        import onnxruntime

        return str(onnxruntime.__version__)

    @property
    def shapes(self) -> dict[str, list[int | str | None]]:
        """The shapes of the input and the output, as the file has them: a number, a name or nothing an axis."""
        (entry,) = self._session.get_inputs()
        made = next(one for one in self._session.get_outputs() if one.name == self._output)
        return {"input": list(entry.shape), "output": list(made.shape)}

    @property
    def operator(self) -> str:
        """The operator that makes the rows, as Softmax; "" if it is not known."""
        return self.header.operator_of(self._output)

    def __call__(self, tiles: TileArray) -> Rows:
        """Return the rows float32[n, K] of tiles uint8[n, S, S, 3]; n may be 0."""
        return self._predict(tiles)

    def _forward(self, tiles: TileArray) -> Rows:
        try:
            rows = self._session.run([self._output], {self._input: self._prepare(tiles)})[0]
        except Exception as error:
            if is_out_of_memory(error) and not self.fixed_batch:
                raise
            why = "memory ran out, and its batch size is fixed" if is_out_of_memory(error) else _reason(error)
            raise WeightsError(f"{self.path}: cannot compute {len(tiles)} tiles: {why}") from error
        if rows.ndim < 2 or rows.shape[0] != len(tiles) or not rows.size or rows.size != len(tiles) * rows.shape[1]:
            raise ConfigError(
                f"{self.path}: the output {self._output} is {list(rows.shape)} for {len(tiles)} tiles; it has to be "
                "[n, K], a row a tile: pool it before the export, or name another in onnx.output_name"
            )
        return np.asarray(rows, np.float32).reshape(len(tiles), -1)

    def _probe(self, tile_px: int) -> int:
        """Return the width of the rows of the first run."""
        try:
            return int(self._forward(noise(tile_px, self.fixed_batch or PROBE_TILES)).shape[1])
        except Exception as error:
            if is_out_of_memory(error):
                raise WeightsError(f"{self.path}: memory ran out in its first run, of {PROBE_TILES} tiles") from error
            raise


def preparation(config: OnnxConfig, side_px: int) -> Prepare:
    """Return the function from tiles uint8[n, S, S, 3] to the network's input, at `side_px`."""
    mean, std = (np.asarray(values, np.float32) for values in (config.mean, config.std))
    factor, offset = np.float32(1) / (np.float32(config.scale) * std), -mean / std  # [1] or [3] each

    def prepare(tiles: TileArray) -> npt.NDArray[Any]:
        pixels = _resized(tiles, side_px)
        if config.channels == "bgr":
            pixels = pixels[..., ::-1]
        if config.layout == "nchw":
            pixels = pixels.transpose(0, 3, 1, 2)
        if config.dtype == "uint8":
            return np.ascontiguousarray(pixels)
        shape = (-1, 1, 1) if config.layout == "nchw" else (-1,)
        scaled = np.multiply(pixels, factor.reshape(shape), dtype=np.float32, order="C")
        scaled += offset.reshape(shape)
        return np.asarray(scaled, config.dtype)

    return prepare


def _resized(tiles: TileArray, side_px: int) -> TileArray:
    """Return the tiles at a side, resized bilinearly with antialiasing, as torchvision resizes pictures."""
    if tiles.shape[1:3] == (side_px, side_px):
        return tiles
    from PIL import Image

    size = (side_px, side_px)
    resized = [np.asarray(Image.fromarray(tile).resize(size, Image.Resampling.BILINEAR)) for tile in tiles]
    return np.stack(resized) if resized else np.zeros((0, *size, 3), np.uint8)


def _open_session(path: Path, header: OnnxHeader, threads: int) -> Any:
    """Return onnxruntime's session of a file. Raises WeightsError for what it does not load."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path}: takes onnxruntime, which is not installed; run make setup") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads would keep their cores busy, which the slides' processes need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = onnxruntime.get_available_providers()
    try:
        return onnxruntime.InferenceSession(path, options, [name for name in PROVIDERS if name in available])
    except Exception as error:  # onnxruntime has a class for each code, all of Exception
        if is_out_of_memory(error):
            raise WeightsError(f"{path}: memory ran out while it was loaded") from error
        raise WeightsError(f"{path}: {_load_problem(error, header, onnxruntime.__version__)}") from error


def _load_problem(error: Exception, header: OnnxHeader, version: str) -> str:
    """Return why onnxruntime does not load a file, and what to do."""
    limit = TOO_NEW.search(str(error))
    if limit is None:
        return f"onnxruntime {version} does not load it: {_reason(error)}"
    if limit["opset"]:
        domain = limit["domain"]
        opset = header.opset if domain == "ai.onnx" else header.opsets.get(domain)
        return f"has opset {opset} of {domain}, onnxruntime {version} knows 1 to {limit['opset']}; export an older one"
    return (
        f"has IR version {header.ir_version}, onnxruntime {version} knows 1 to {limit['ir']}; export it with an older "
        "version of the onnx package"
    )


def _reason(error: Exception) -> str:
    return one_line(ValueError(PREAMBLE.sub("", str(error))))


def _provider_notes(provider: str) -> list[str]:
    """Return a line if a GPU that onnxruntime is made for does not work."""
    import onnxruntime

    wanted = next(name for name in PROVIDERS if name in onnxruntime.get_available_providers())
    return [] if provider == wanted else [f"computes with {provider}: {wanted} does not start here"]


def _checked_input(session: Any, config: OnnxConfig, tile_px: int, path: Path) -> tuple[str, int, int]:
    """Return the name of the input, its batch size (0: any) and the side of its pictures in pixels.

    Raises ConfigError if it is not what the recipe says.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ConfigError(
            f"{path}: has {len(inputs)} inputs ({', '.join(one.name for one in inputs)}); a network of tiles has 1"
        )
    (one,) = inputs
    if one.type != TYPES[config.dtype]:
        raise ConfigError(f"{path}: the input {one.name} is {one.type}, onnx.dtype of the recipe {config.dtype!r}")
    side_px = config.input_px or tile_px
    wanted = [3, side_px, side_px] if config.layout == "nchw" else [side_px, side_px, 3]
    shape = list(one.shape)
    fits = len(shape) == 4 and all(
        size == need for size, need in zip(shape[1:], wanted, strict=True) if isinstance(size, int)
    )
    if not fits:
        raise ConfigError(
            f"{path}: the input {one.name} is {shape}; by onnx.layout {config.layout!r}, 3 channels and the side of "
            f"{side_px} px it has to be [n, {', '.join(map(str, wanted))}]; set onnx.layout, onnx.input_px or tile_px"
        )
    return one.name, shape[0] if isinstance(shape[0], int) else 0, side_px


def _chosen_output(session: Any, config: OnnxConfig, path: Path) -> str:
    """Return the name of the output to take.

    Raises ConfigError if the recipe's is not there, it names none of several, or the output is not of numbers.
    """
    types = {one.name: one.type for one in session.get_outputs()}
    names = list(types)
    if config.output_name in names or (len(names) == 1 and not config.output_name):
        chosen = config.output_name or names[0]
        if types[chosen] not in ROW_TYPES:
            raise ConfigError(
                f"{path}: the output {chosen} is {types[chosen]}; a tensor of numbers is needed: name another in "
                "onnx.output_name, or export without ZipMap (scikit-learn: zipmap=False)"
            )
        return chosen
    raise ConfigError(f"{path}: onnx.output_name is {config.output_name!r}; its outputs are {', '.join(names)}")
