"""A bundle's model.onnx behind HTTP as people write it in Python: Starlette, uvicorn, Pillow, onnxruntime.

    python benches/service/onnxruntime_server.py BUNDLE PORT
"""

import io
import json
import sys

import numpy as np
import onnxruntime
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route

bundle, port = sys.argv[1], int(sys.argv[2])
session = onnxruntime.InferenceSession(f"{bundle}/model.onnx", providers=["CPUExecutionProvider"])
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
_, height, width, channels = session.get_inputs()[0].shape


def answer(body):
    image = Image.open(io.BytesIO(body)).convert("L" if channels == 1 else "RGB")
    frame = np.asarray(image).reshape(1, height, width, channels)
    logits, probabilities = session.run(["logits", "probabilities"], {"frame": frame})
    best = int(logits[0].argmax())
    return {"label": labels[best], "confidence": float(probabilities[0, best]), "shares": probabilities[0].tolist()}


async def inspect(request):
    return JSONResponse(await run_in_threadpool(answer, await request.body()))


uvicorn.run(Starlette(routes=[Route("/v1/inspect", inspect, methods=["POST"])]), port=port, log_level="error")
