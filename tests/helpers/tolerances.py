"""Tolerances against the reference's numbers: absolute unless named relative.

The reference's own noise between 1 and 2 threads is 3e-6 on features, 5e-6 on logits, 3e-5 px on
boxes, 5e-7 on scores, 1e-6 (relative) on losses and 1e-3 (relative) on gradient norms.
"""

FEATURES = 1e-4
LOGITS = 1e-4
BOX_DELTAS = 1e-4
CENTERNESS = 1e-4
BOXES_PX = 2e-3
SCORES = 1e-5
LOSSES_RELATIVE = 1e-5
GRAD_NORMS_RELATIVE = 2e-3
GRAD_NORMS_FLOOR = 1e-5
# Of the gradient norm of the same layer's key.weight.
KEY_BIAS_RELATIVE = 1e-6
