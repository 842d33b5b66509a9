"""Measure `clotkit features` with a large encoder: `python -m bench.features`.

A network of the size of ViT-B/16 (86 million random weights, 327 MB as ONNX) encodes 500 tiles of a drawn slide. First
the run is planned; then it runs, and its peak memory and seconds are compared with the plan. With `--encoder FOLDER`
another encoder is measured. build/bench_features/ has the figures.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.processes import run
from clotkit.competitions import load_competition
from clotkit.features.plan import forecast_features
from clotkit.features.run import FeatureSettings
from clotkit.files import atomic_write, atomic_write_json, atomic_write_text
from clotkit.rehearsal.confined.trees import tree_mb
from clotkit.synthetic.phantom import write_split

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "bench_features"
LAYERS, WIDTH, HEADS, PATCH_PX, TILE_PX = 12, 768, 12, 16, 224  # ViT-B/16
TOKENS = (TILE_PX // PATCH_PX) ** 2 + 1
TILES, SIDE = 500, "16384x16384"
RECIPE = f"""name = "large"
[tiling]
name = "patches"
tile_px = {TILE_PX}
downsample = 1
max_tiles = {TILES}
batch_tiles = 16
min_tissue_share = 0.1
overlap = 0.6
[model]
name = "cnn"
filters = [4]
[training]
seed = 1
epochs = 1
batch_tiles = 16
learning_rate = 1e-3
"""
TOML = 'title = "random weights, the size of ViT-B/16"\ntile_px = 224\n[onnx]\noutput = "features"\n'


@dataclass(frozen=True)
class Figures:
    """A run, and what was forecast."""

    encoder: str
    network_mb: float
    slides: int
    tiles: int
    seconds: float  # of the whole command
    cpu_s: float
    peak_mb: float  # of all processes together, shared pages counted once
    planned: dict[str, Any]


def main() -> int:
    """Draw, plan and run; print the figures and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", type=Path, help="folder of an encoder to measure instead")
    parser.add_argument("--slides", type=int, default=1)
    arguments = parser.parse_args()
    encoder = arguments.encoder or OUT / "vit_b"
    if not (encoder / "encoder.toml").is_file():
        write_encoder(encoder)
    competition, split = load_competition("strip_ai"), OUT / "split"
    write_split(split, "train", arguments.slides, 3, competition, size=SIDE, log=lambda _: None)
    atomic_write_text(OUT / "large.toml", RECIPE)
    out = OUT / f"features_{encoder.name}"
    for path in out.glob("*"):
        path.unlink()
    settings = FeatureSettings(split, out, str(OUT / "large.toml"), str(encoder), (), jobs=1)
    plan = forecast_features(settings, competition, print)
    print(plan, flush=True)
    figures = measured(settings, encoder, arguments.slides, asdict(plan))
    print(json.dumps(asdict(figures), indent=1))
    atomic_write_json(OUT / f"figures_{encoder.name}.json", asdict(figures))
    return 0


def measured(settings: FeatureSettings, encoder: Path, slides: int, planned: dict[str, Any]) -> Figures:
    """Run the command and return its figures."""
    peak = 0.0

    def watch(pid: int) -> bool:
        nonlocal peak
        peak = max(peak, tree_mb(pid))
        return False

    command = [sys.executable, "-m", "clotkit.cli", "features", settings.split_dir, settings.out, "--jobs", "1"]
    what = ["--encoder", encoder, "--recipe", settings.recipe]
    with (OUT / "log.txt").open("w") as log:
        code, cost = run([*command, *what], log, kill_if=watch)
    assert code == 0, (OUT / "log.txt").read_text()
    rows = (Path(str(settings.out)) / "features.csv").read_text().splitlines()[1:]
    tiles = sum(int(row.split(",")[5]) for row in rows)
    size_mb = max(path.stat().st_size for path in encoder.iterdir()) / 2**20
    return Figures(encoder.name, size_mb, slides, tiles, cost.seconds, cost.cpu_s, peak, planned)


def write_encoder(folder: Path) -> None:
    """Write a vision transformer with random weights as an encoder."""
    import onnx
    from onnx import helper, numpy_helper

    rng, weights, nodes = np.random.default_rng(0), list[Any](), list[Any]()

    def weight(name: str, *shape: int) -> str:
        values = rng.normal(0, 0.02, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    def constant(name: str, values: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    constant("ones", np.ones(WIDTH, np.float32))
    constant("zeros", np.zeros(WIDTH, np.float32))
    constant("heads", np.array([0, TOKENS, HEADS, WIDTH // HEADS]))
    constant("flat", np.array([0, TOKENS, WIDTH]))
    constant("grid", np.array([0, WIDTH, TOKENS - 1]))
    constant("scale", np.float32((WIDTH // HEADS) ** -0.5))
    constant("half", np.float32(0.5))
    constant("one", np.float32(1))
    constant("root", np.float32(2**-0.5))
    constant("first", np.int64(0))
    kernel = weight("patch", WIDTH, 3, PATCH_PX, PATCH_PX)
    patches = add("Conv", ["tiles", kernel], strides=[PATCH_PX, PATCH_PX])
    x = add("Transpose", [add("Reshape", [patches, "grid"])], perm=[0, 2, 1])  # [n, 196, 768]
    x = add("Pad", [x, constant("pads", np.array([0, 1, 0, 0, 0, 0]))])  # a class token of zeros
    x = add("Add", [x, weight("positions", 1, TOKENS, WIDTH)])
    for layer in range(LAYERS):
        x = add("Add", [x, _attention(add, weight, x, layer)])
        x = add("Add", [x, _perceptron(add, weight, x, layer)])
    x = add("Gather", [add("LayerNormalization", [x, "ones", "zeros"]), "first"], axis=1)
    nodes.append(helper.make_node("Identity", [x], ["features"]))
    tiles = helper.make_tensor_value_info("tiles", 1, ["n", 3, TILE_PX, TILE_PX])
    features = helper.make_tensor_value_info("features", 1, ["n", WIDTH])
    graph = helper.make_graph(nodes, "vit_b", [tiles], [features], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "model.onnx") as path:
        onnx.save(model, path)
    atomic_write_text(folder / "encoder.toml", TOML)


def _attention(add: Any, weight: Any, x: str, layer: int) -> str:
    """Add the nodes of a layer's attention: [n, tokens, width] -> the same."""
    normed = add("LayerNormalization", [x, "ones", "zeros"])

    def part(name: str, perm: list[int]) -> str:
        rows = add("MatMul", [normed, weight(f"{name}{layer}", WIDTH, WIDTH)])
        return str(add("Transpose", [add("Reshape", [rows, "heads"])], perm=perm))

    scores = add("MatMul", [part("q", [0, 2, 1, 3]), part("k", [0, 2, 3, 1])])
    shares = add("Softmax", [add("Mul", [scores, "scale"])], axis=-1)
    mixed = add("Transpose", [add("MatMul", [shares, part("v", [0, 2, 1, 3])])], perm=[0, 2, 1, 3])
    return str(add("MatMul", [add("Reshape", [mixed, "flat"]), weight(f"o{layer}", WIDTH, WIDTH)]))


def _perceptron(add: Any, weight: Any, x: str, layer: int) -> str:
    """Add the nodes of a layer's two dense layers, with GELU between them."""
    normed = add("LayerNormalization", [x, "ones", "zeros"])
    hidden = add("MatMul", [normed, weight(f"up{layer}", WIDTH, 4 * WIDTH)])
    gate = add("Add", [add("Erf", [add("Mul", [hidden, "root"])]), "one"])
    active = add("Mul", [add("Mul", [hidden, gate]), "half"])
    return str(add("MatMul", [active, weight(f"down{layer}", 4 * WIDTH, WIDTH)]))


if __name__ == "__main__":
    raise SystemExit(main())
