"""What Triton's own client gets from `steadfast serve`, compared with the golden logits.

    python tests/golden/triton_client.py HOST:PORT MODEL BUNDLE     (tritonclient[http], numpy, safetensors)
"""

import sys

import numpy as np
import tritonclient.http as triton
from safetensors.numpy import load_file

address, model, bundle = sys.argv[1:]
client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
assert client.get_server_metadata()["name"] == "steadfast"
golden = load_file(f"{bundle}/golden.safetensors")
assert client.get_model_metadata(model)["inputs"][0]["shape"] == [-1, *golden["inputs"].shape[1:]]
for binary in (False, True):
    image = triton.InferInput("image", golden["inputs"].shape, "FP32")
    image.set_data_from_numpy(golden["inputs"], binary_data=binary)
    names = ("logits", "probabilities", "label", "verdict")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = client.infer(model, [image], outputs=outputs)
    assert np.abs(answer.as_numpy("logits") - golden["logits"]).max() < 1e-3
    assert np.allclose(answer.as_numpy("probabilities").sum(1), 1, atol=1e-5)
    assert len(answer.as_numpy("label")) == len(answer.as_numpy("verdict")) == len(golden["inputs"])
with open(f"{bundle}/golden/00.png", "rb") as file:
    files = np.array([file.read()] * 2, dtype=object)
file = triton.InferInput("file", [2], "BYTES")
file.set_data_from_numpy(files)
logits = client.infer(model, [file]).as_numpy("logits")
assert np.abs(logits - golden["logits"][0]).max() < 1e-3
try:
    client.infer(model, [triton.InferInput("image", [1], "FP32")])
    raise SystemExit("a wrong shape was taken")
except triton.InferenceServerException as error:
    assert "its shape is [1]" in str(error), error
