"""Faults of sampling and guidance: pipelines, conditions, solvers, APG, ICG, precision."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

PIPELINE = ("tests/t2i/test_pipeline.py",)
CLASS_PIPELINE = ("tests/t2i/test_class_pipeline.py",)
SAMPLE = ("tests/t2i/test_sample.py",)
FLOW = ("tests/t2i/test_flow.py",)
METHODS = ("tests/t2i/guidance/test_methods.py",)
SAMPLER = ("tests/t2i/sampling/test_sampler.py",)
SAMPLER_OF_CLASSES = ("tests/t2i/sampling/test_sampler_of_classes.py",)
SOLVERS = ("tests/t2i/sampling/test_solvers.py",)
LAYERS = ("tests/t2i/models/test_layers.py",)
SIT = ("tests/t2i/models/test_sit.py",)
TR_DIT = ("tests/t2i/models/test_tr_dit.py",)
SHIPPED = ("tests/t2i/test_shipped_outputs.py",)

MUTANTS: tuple[Mutant, ...] = (
    # the null condition
    Mutant(
        name="the null branch is told the prompt",
        file="t2i/pipeline.py",
        old='ConditionText(encode([""]), torch.zeros_like(rows_B))',
        new="ConditionText(encode(prompts), rows_B)",
        tests=PIPELINE,
    ),
    Mutant(
        name="the null prompt is blank, not empty",
        file="t2i/pipeline.py",
        old='encode([""])',
        new='encode([" "])',
        tests=PIPELINE,
    ),
    # the second network
    Mutant(
        name="the weak branch of ag+sg is told nothing",
        file="t2i/guidance/methods.py",
        old='bad = replace(weak(gamma_weak), network="aux")',
        new='bad = replace(weak(gamma_weak, "null"), network="aux")',
        tests=METHODS,
    ),
    Mutant(
        name="the weak branch of ag is that of cfg",
        file="t2i/guidance/methods.py",
        old='Branch(network="aux")',
        new='Branch("null")',
        tests=METHODS,
    ),
    Mutant(
        name="the main network stands for the second one",
        file="t2i/image_pipeline.py",
        old='{"aux": self.aux} if self.aux',
        new='{"aux": self.transformer} if self.aux',
        tests=PIPELINE,
    ),
    Mutant(
        name="the second network is loaded from the first one's folder",
        file="t2i/pipeline.py",
        old="load_transformer(transformer_folder(Path(aux)), device, dtype)",
        new="load_transformer(transformer_folder(checkpoint), device, dtype)",
        tests=PIPELINE,
    ),
    Mutant(
        name="the second class network is loaded from the first one's folder",
        file="t2i/class_pipeline.py",
        old="load_class_model(Path(aux), device, dtype)",
        new="load_class_model(Path(folder), device, dtype)",
        tests=CLASS_PIPELINE,
    ),
    Mutant(
        name="the second network reads the first one's keys and values",
        file="t2i/sampling/sampler.py",
        old="prepare(networks[name], conditions[condition])",
        new='prepare(networks["main"], conditions[condition])',
        tests=SAMPLER,
    ),
    # times
    Mutant(
        name="the resolution shift is no root",
        file="t2i/flow.py",
        old="return math.sqrt(num_tokens / reference_tokens)",
        new="return num_tokens / reference_tokens",
        tests=FLOW,
    ),
    Mutant(
        name="the resolution shift is upside down",
        file="t2i/image_pipeline.py",
        old="flow.resolution_shift(latent_shape[1] * latent_shape[2], height * width)",
        new="flow.resolution_shift(height * width, latent_shape[1] * latent_shape[2])",
        tests=PIPELINE,
    ),
    Mutant(
        name="the resolution shift knows the height alone",
        file="t2i/image_pipeline.py",
        old="flow.resolution_shift(latent_shape[1] * latent_shape[2], height * width)",
        new="flow.resolution_shift(latent_shape[1] ** 2, height * width)",
        tests=PIPELINE,
    ),
    Mutant(
        name="the resolution shift is left out",
        file="t2i/image_pipeline.py",
        old='self.resolution_shift(latent_shape) if shift == "resolution" else shift',
        new='1.0 if shift == "resolution" else shift',
        tests=PIPELINE,
    ),
    Mutant(
        name="times are shifted towards data",
        file="t2i/flow.py",
        old="return timestep / (shift - (shift - 1) * timestep)",
        new="return timestep * shift / (1 + (shift - 1) * timestep)",
        tests=FLOW + SOLVERS,
    ),
    Mutant(
        name="Heun's second evaluation has the draws of the next step",
        file="t2i/sampling/solvers.py",
        old="field(predicted, next_time, step))",
        new="field(predicted, next_time, step + 1))",
        tests=SOLVERS,
    ),
    # precision
    Mutant(
        name="branches are summed in the networks' dtype",
        file="t2i/sampling/sampler.py",
        old="together.float().chunk(len(batch))",
        new="together.chunk(len(batch))",
        tests=SAMPLER,
    ),
    Mutant(
        name="branches are summed in bf16",
        file="t2i/sampling/sampler.py",
        old="        total = total.add(values[evaluation], alpha=weights[evaluation])\n",
        new="        total = total.add(values[evaluation], alpha=weights[evaluation]).bfloat16().float()\n",
        tests=SAMPLER,
    ),
    Mutant(
        name="time is read in the weights' dtype",
        file="t2i/models/layers.py",
        old="time_sinusoids(timestep_B).to(self.hidden.weight.dtype)",
        new="time_sinusoids(timestep_B.to(self.hidden.weight.dtype)).to(self.hidden.weight.dtype)",
        tests=LAYERS,
    ),
    Mutant(
        name="SiT's time is read in the weights' dtype",
        file="t2i/models/sit_layers.py",
        old="time_sinusoids(timestep_B, scale=1.0).to(",
        new="time_sinusoids(timestep_B.to(self.hidden.weight.dtype), scale=1.0).to(",
        tests=LAYERS,
    ),
    Mutant(
        name="TR-DiT rounds the time",
        file="t2i/models/tr_dit.py",
        old="self.time(timestep_B)",
        new="self.time(timestep_B.to(self.patch.weight.dtype))",
        tests=TR_DIT,
    ),
    Mutant(
        name="SiT rounds the time",
        file="t2i/models/sit.py",
        old="self.time(timestep_B)",
        new="self.time(timestep_B.to(self.patch.weight.dtype))",
        tests=SIT,
    ),
    Mutant(
        name="sinusoids are computed in bf16",
        file="t2i/models/layers.py",
        old="angles = scale * timestep_B.float()[:, None] * frequencies\n",
        new="angles = scale * timestep_B.float()[:, None] * frequencies.bfloat16()\n",
        tests=LAYERS,
    ),
    # S2
    Mutant(
        name="S2 leaves out no block before the route",
        file="t2i/sampling/sampler.py",
        old="return network.before_route(hidden, self._context(name, conditions, step), perturbation)",
        new="return network.before_route(hidden, self._context(name, conditions, step))",
        tests=SAMPLER,
    ),
    Mutant(
        name="S2 leaves out no block before the route, seen by SiT",
        file="t2i/sampling/sampler.py",
        old="return network.before_route(hidden, self._context(name, conditions, step), perturbation)",
        new="return network.before_route(hidden, self._context(name, conditions, step))",
        tests=SAMPLER_OF_CLASSES,
    ),
    Mutant(
        name="TR-DiT runs all blocks before the route",
        file="t2i/models/tr_dit.py",
        old="blocks_left(start, stop, perturbation.skip_blocks)",
        new="blocks_left(start, stop, ())",
        tests=TR_DIT,
    ),
    Mutant(
        name="SiT runs all blocks before the route",
        file="t2i/models/sit.py",
        old="blocks_left(start, stop, perturbation.skip_blocks)",
        new="blocks_left(start, stop, ())",
        tests=SIT,
    ),
    # APG
    Mutant(
        name="APG's average advances at every evaluation",
        file="t2i/guidance/projection.py",
        old="        is_first = fraction != self.fraction\n",
        new="        is_first = True\n",
        tests=METHODS,
    ),
    Mutant(
        name="APG's average is that of a step's last evaluation",
        file="t2i/guidance/projection.py",
        old="        if is_first:\n            self.average = average\n",
        new="        self.average = average\n",
        tests=METHODS,
    ),
    Mutant(
        name="APG's second evaluation forgets the steps before",
        file="t2i/guidance/projection.py",
        old="average = latest + momentum * self.before",
        new="average = latest + momentum * self.before * is_first",
        tests=METHODS,
    ),
    # ICG
    Mutant(
        name="ICG keeps the prompt of the first step",
        file="t2i/pipeline.py",
        old='rng.words(RUN_SEED, "random prompt", step, seeds_B, 1)',
        new='rng.words(RUN_SEED, "random prompt", 0, seeds_B, 1)',
        tests=PIPELINE,
    ),
    Mutant(
        name="ICG keeps the class of the first step",
        file="t2i/class_pipeline.py",
        old='rng.words(RUN_SEED, "random class", step, seeds_B, 1)',
        new='rng.words(RUN_SEED, "random class", 0, seeds_B, 1)',
        tests=CLASS_PIPELINE,
    ),
    Mutant(
        name="the sampler joins a redrawn condition once",
        file="t2i/sampling/sampler.py",
        old="drawn_at = None if self.rows.keys().isdisjoint(conditions) else step",
        new="drawn_at = None",
        tests=SAMPLER,
    ),
    Mutant(
        name="ICG draws per step what was asked per image",
        file="t2i/pipeline.py",
        old="Redrawn(pool, rows) if is_redrawn else ConditionText(pool, rows(0))",
        new="Redrawn(pool, rows)",
        tests=SAMPLE,
    ),
    Mutant(
        name="ICG's draws are no part of an image's metadata",
        file="t2i/generation.py",
        old='        settings["random_condition"] = sampling.random_condition\n',
        new="        pass\n",
        tests=SAMPLE,
    ),
    Mutant(
        name="the command does not say how often ICG draws",
        file="t2i/generation.py",
        old='            "random_condition": sampling.random_condition,\n',
        new="",
        tests=SAMPLE,
    ),
    # what the shipped weights compute
    Mutant(
        name="cfg's default scale is another",
        file="t2i/guidance/methods.py",
        old='@method("cfg", omega=2.5)',
        new='@method("cfg", omega=2.4)',
        tests=SHIPPED,
    ),
    Mutant(
        name="SG's branches share a draw",
        file="t2i/guidance/methods.py",
        old='draw=f"weak {condition}"',
        new='draw=f"strong {condition}"',
        tests=SHIPPED,
    ),
    Mutant(
        name="the caption is not parted from the prefix",
        file="t2i/encoders/text.py",
        old='separated = f" {caption}" if caption and self.prefix_ids else caption',
        new="separated = caption",
        tests=SHIPPED,
    ),
    Mutant(
        name="ICG draws from another stream",
        file="t2i/pipeline.py",
        old='"random prompt"',
        new='"other prompt"',
        tests=SHIPPED,
    ),
)
