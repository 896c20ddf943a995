"""The policy of an exported model on its shipped position: python onnx_policy.py FOLDER"""

import sys

import numpy as np
import onnxruntime

position = np.load(f"{sys.argv[1]}/position.npz")
session = onnxruntime.InferenceSession(f"{sys.argv[1]}/model.onnx")
inputs = {each.name: position[each.name] for each in session.get_inputs()}
policy, value = session.run(["policy", "value"], inputs)
np.testing.assert_allclose(policy, position["policy"], atol=1e-4)
np.testing.assert_allclose(value, position["value"], atol=1e-4)
best = policy[0].argsort()[::-1][:5]
print(f"best of {policy.shape[1]} moves: {best}, policy {policy[0, best]}, chances {value[0]}")
