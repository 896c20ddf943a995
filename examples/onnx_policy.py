"""The policy of an exported model on its shipped position: python onnx_policy.py FOLDER"""

import sys

import numpy as np
import onnxruntime

folder = sys.argv[1] if len(sys.argv) > 1 else sys.exit(__doc__)
position = np.load(f"{folder}/position.npz")
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
(policy,) = session.run(["policy"], {x.name: position[x.name] for x in session.get_inputs()})
np.testing.assert_allclose(policy, position["policy"], atol=1e-4)
for best in policy[0].argsort()[:-6:-1]:
    print(f"{policy[0, best]:.3f}  {position['moves'][0, best]}")
