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
print(f"best moves {policy[0].argsort()[:-6:-1]}, policy {np.sort(policy[0])[:-6:-1]}, {value=}")
