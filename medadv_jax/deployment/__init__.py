"""What leaves a run: the model folder, which predicts and is exported without run or data.

    models/<defense>/ ── load ──► Model ── predict, logits ──► files, saliency, attacks
                                   ├───── export ─────────────► StableHLO, ONNX
                                   └───── serve ──────────────► a page in the browser

`medadv_jax.load` is the way in.
"""
