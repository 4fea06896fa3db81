"""Faults of training: null conditions, EMA, gradient clipping."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

BACKBONE = ("tests/t2i/training/test_backbone.py",)
EMA = ("tests/t2i/training/averages/test_ema.py",)
TRAINER = ("tests/t2i/training/test_trainer.py",)

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="the null text of training is blank, not empty",
        file="t2i/training/backbone.py",
        old='return self.encode([""])',
        new='return self.encode([" "])',
        tests=BACKBONE,
    ),
    Mutant(
        name="the null text of training is a reference",
        file="t2i/training/backbone.py",
        old='return self.encode([""])',
        new="return self.encode(self.reference_captions[:1])",
        tests=BACKBONE,
    ),
    Mutant(
        name="a dropped caption is encoded as a blank",
        file="t2i/training/backbone.py",
        old="return self.encode(batch.captions)",
        new='return self.encode([caption or " " for caption in batch.captions])',
        tests=BACKBONE,
    ),
    Mutant(
        name="a blank caption counts as dropped",
        file="t2i/training/backbone.py",
        old='[caption == "" for caption in batch.captions]',
        new='[caption.strip() == "" for caption in batch.captions]',
        tests=BACKBONE,
    ),
    Mutant(
        name="the null label is a class",
        file="t2i/training/backbone.py",
        old="torch.full((size,), self.num_classes, device=self.device)",
        new="torch.full((size,), 0, device=self.device)",
        tests=BACKBONE,
    ),
    Mutant(
        name="the decay has no limit",
        file="t2i/training/averages/ema.py",
        old="return min(limit, (1 + updates) / (10 + updates))",
        new="return (1 + updates) / (10 + updates)",
        tests=EMA,
    ),
    Mutant(
        name="the decay has no ramp",
        file="t2i/training/averages/ema.py",
        old="return min(limit, (1 + updates) / (10 + updates))",
        new="return limit",
        tests=EMA,
    ),
    Mutant(
        name="the decay's ramp is steeper",
        file="t2i/training/averages/ema.py",
        old="return min(limit, (1 + updates) / (10 + updates))",
        new="return min(limit, (1 + updates) / (9 + updates))",
        tests=EMA,
    ),
    Mutant(
        name="the run's EMA ignores its limit",
        file="t2i/training/trainer.py",
        old="partial(decay_at, limit=config.ema_decay)",
        new="partial(decay_at, limit=1.0)",
        tests=TRAINER,
    ),
    Mutant(
        name="gradients are not clipped",
        file="t2i/training/engine.py",
        old='"gradient_clipping": config.gradient_clipping',
        new='"gradient_clipping": 0.0',
        tests=TRAINER,
    ),
    Mutant(
        name="gradients are clipped to 1 whatever the config says",
        file="t2i/training/engine.py",
        old='"gradient_clipping": config.gradient_clipping',
        new='"gradient_clipping": 1.0',
        tests=TRAINER,
    ),
)
