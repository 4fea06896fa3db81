"""Faults of the FID Inception network: its pools, resize, constants and outputs."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

INCEPTION = "t2i/evaluation/inception.py"
BLOCKS = "t2i/evaluation/inception_blocks.py"
TESTS = "tests/t2i/evaluation/test_inception.py"

MUTANTS = (
    Mutant(
        "inception: average pools count the padding",
        BLOCKS,
        "count_include_pad=False",
        "count_include_pad=True",
        (f"{TESTS}::test_average_pools_leave_out_the_padding",),
    ),
    Mutant(
        "inception: the last block pools by average",
        INCEPTION,
        'BlockE(2048, pool="max")',
        'BlockE(2048, pool="average")',
        (f"{TESTS}::test_only_the_last_block_pools_by_maximum",),
    ),
    Mutant(
        "inception: a block told to pool by maximum takes the average",
        BLOCKS,
        'if self.pool == "max" else',
        'if self.pool == "maximum" else',
        (f"{TESTS}::test_only_the_last_block_pools_by_maximum",),
    ),
    Mutant(
        "inception: torch's epsilon of batch norm",
        BLOCKS,
        "BATCH_NORM_EPS = 1e-3",
        "BATCH_NORM_EPS = 1e-5",
        (f"{TESTS}::test_batch_norm_adds_a_thousandth_to_the_variance",),
    ),
    Mutant(
        "inception: resize with half-pixel centres",
        INCEPTION,
        "device=x_BCHW.device) * scale",
        "device=x_BCHW.device).add(0.5).mul(scale).sub(0.5).clamp(min=0)",
        (f"{TESTS}::test_resize_by_hand",),
    ),
    Mutant(
        "inception: resize with aligned corners",
        INCEPTION,
        "torch.tensor(old_size / size,",
        "torch.tensor((old_size - 1) / (size - 1),",
        (f"{TESTS}::test_resize_equals_a_plain_loop",),
    ),
    Mutant(
        "inception: resize takes the share of the wrong neighbour",
        INCEPTION,
        "low + (high - low) * share",
        "high + (low - high) * share",
        (f"{TESTS}::test_resize_by_hand",),
    ),
    Mutant(
        "inception: pixels are centred at 127.5",
        INCEPTION,
        "INPUT_SIZE) - 128) / 128",
        "INPUT_SIZE) - 127.5) / 127.5",
        (f"{TESTS}::test_preprocessing_shifts_by_128_and_leaves_299_alone",),
    ),
    Mutant(
        "inception: logits with bias",
        INCEPTION,
        "logits=pool3_BC @ self.fc.weight.T,",
        "logits=self.fc(pool3_BC),",
        (f"{TESTS}::test_golden_numbers",),
    ),
    Mutant(
        "inception: spatial features channels first",
        INCEPTION,
        ".permute(0, 2, 3, 1)",
        "",
        (f"{TESTS}::test_golden_numbers",),
    ),
    Mutant(
        "inception: spatial features a block too late",
        INCEPTION,
        """\
        x = self.Mixed_6d(x)
        # Its first branch comes first, so these are channels of mixed_6/conv:0.
""",
        "        x = self.Mixed_6e(self.Mixed_6d(x))\n",
        (f"{TESTS}::test_golden_numbers",),
    ),
    Mutant(
        "inception: any file passes for the published one",
        INCEPTION,
        "if weights_hash != PUBLISHED_SHA256 and not accept_other_weights:",
        "if not weights_hash and not accept_other_weights:",
        (f"{TESTS}::test_other_weights_are_refused_or_marked",),
    ),
)
