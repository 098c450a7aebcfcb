"""What a language model's loss computes and moves on 1 to 4,096 devices, on paper.

    python tests/benchmarks/scaling.py

Rows are spread over data-parallel groups, classes over the T devices of a group. The counts are those that
tests/on_devices.py reads from compiled programs; the rates are assumptions, stated below, and nothing is measured.
"""

TOKENS, FEATURES, CLASSES = 8192, 4096, 128256  # tokens of each group
MATMUL = 790e12  # FLOP/s of one device, bfloat16
NEAR, FAR = 450e9, 50e9  # bytes/s of one device in one direction: within a node of 8, and between nodes
LATENCY = {8: 10e-6, 4096: 40e-6}  # of one all-reduce within a node, between nodes
NUMBERS = 4  # of each row: maximum, sum of exponentials, the target's logit, and the sum of logits of smoothing


def all_reduce(size, devices, near):
    """Seconds of a ring over `devices`: each sends and receives nearly twice its data."""
    if devices == 1:
        return 0.0
    return 2 * (devices - 1) / devices * size / (NEAR if near else FAR) + LATENCY[8 if near else 4096]


def row(devices, over_classes):
    groups = devices // over_classes
    compute = 3 * 2 * TOKENS * FEATURES * CLASSES / over_classes / MATMUL
    of_rows = NUMBERS * TOKENS * 4
    of_features = TOKENS * FEATURES * 4  # the features' gradient, float32
    of_weight = FEATURES * CLASSES * 2 / over_classes  # the weight's gradient, bfloat16
    inside = all_reduce(of_rows, over_classes, True) + all_reduce(of_features, over_classes, True)
    between = all_reduce(of_weight, groups, devices <= 8) + all_reduce(8, groups, devices <= 8)
    exposed = compute + inside + max(0.0, between - 2 / 3 * compute)  # the weight's gradient travels while others form
    tokens = groups * TOKENS / exposed
    return compute, inside, between, tokens


def main():
    print("| devices | rows × classes | matmuls | over classes | weight's gradient over rows | efficiency |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    alone = row(1, 1)[3]
    for devices, over_classes in ((1, 1), (8, 1), (8, 8), (64, 1), (64, 8), (512, 1), (512, 8), (4096, 1), (4096, 8)):
        compute, inside, between, tokens = row(devices, over_classes)
        shape = f"{devices // over_classes} × {over_classes}"
        times = " | ".join(f"{seconds * 1e3:.2f} ms" for seconds in (compute, inside, between))
        print(f"| {devices} | {shape} | {times} | {tokens / alone / devices:.0%} |")


if __name__ == "__main__":
    main()
