"""What KServe's own client gets from `steadfast serve`, compared with the golden logits.

    python tests/golden/kserve_client.py HOST:PORT MODEL BUNDLE     (kserve, numpy, safetensors)
"""

import asyncio
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from safetensors.numpy import load_file

address, model, bundle = sys.argv[1:]
golden = load_file(f"{bundle}/golden.safetensors")


async def main():
    client, url = InferenceRESTClient(RESTConfig(protocol="v2")), f"http://{address}"
    assert await client.is_server_live(url) and await client.is_server_ready(url)
    assert await client.is_model_ready(url, model)
    for binary in (False, True):
        image = InferInput("image", list(golden["inputs"].shape), "FP32")
        image.set_data_from_numpy(golden["inputs"], binary_data=binary)
        answer = await client.infer(url, InferRequest(model, [image]), model_name=model)
        outputs = {output.name: output for output in answer.outputs}
        assert np.abs(outputs["logits"].as_numpy() - golden["logits"]).max() < 1e-3
        assert len(outputs["label"].data) == len(outputs["verdict"].data) == len(golden["inputs"])


asyncio.run(main())
