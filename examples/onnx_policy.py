"""The policy of an exported model on its shipped position: python onnx_policy.py FOLDER"""

import sys

import numpy as np
import onnxruntime

position = np.load(f"{sys.argv[1]}/position.npz")
session = onnxruntime.InferenceSession(f"{sys.argv[1]}/model.onnx")
inputs = {each.name: position[each.name] for each in session.get_inputs()}
policy = session.run(["policy"], inputs)[0]
np.testing.assert_allclose(policy, position["policy"], atol=1e-4)
for best in policy[0].argsort()[:-6:-1]:
    print(f"{policy[0, best]:.3f}  {position['moves'][0, best]}")
