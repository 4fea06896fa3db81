"""Faults of TR-DiT: its blocks, refiner, time, positions, routes, patches and head."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

TR_DIT = "t2i/models/tr_dit.py"
TR_DIT_LAYERS = "t2i/models/tr_dit_layers.py"
LAYERS = "t2i/models/layers.py"
ROPE = "t2i/models/rope.py"
POSITIONS = "t2i/models/positions.py"
ROUTING = "t2i/models/routing.py"
REFERENCE = ("tests/t2i/models/test_tr_dit_reference.py",)

BLOCK = (
    Mutant(
        "block: shift and scale swapped",
        TR_DIT_LAYERS,
        "shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation",
        "scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation",
        REFERENCE,
    ),
    Mutant(
        "block: the FFN's modulation and attention's swapped",
        TR_DIT_LAYERS,
        "shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation",
        "shift2, scale2, gate2, shift1, scale1, gate1 = self.modulation",
        REFERENCE,
    ),
    Mutant(
        "block: no norm before self-attention",
        TR_DIT_LAYERS,
        "modulate(rms_norm(x_BTD), shift1, scale1)",
        "modulate(x_BTD, shift1, scale1)",
        REFERENCE,
    ),
    Mutant(
        "block: no norm before the FFN",
        TR_DIT_LAYERS,
        "modulate(rms_norm(x_BTD), shift2, scale2)",
        "modulate(x_BTD, shift2, scale2)",
        REFERENCE,
    ),
    Mutant(
        "block: no norm before cross-attention",
        TR_DIT_LAYERS,
        "self.cross_attention(self.cross_norm(x_BTD), key_value, mask_B11L)",
        "self.cross_attention(x_BTD, key_value, mask_B11L)",
        REFERENCE,
    ),
    Mutant(
        "block: FFN before cross-attention",
        TR_DIT_LAYERS,
        """\
        x_BTD = x_BTD + self.cross_attention(self.cross_norm(x_BTD), key_value, mask_B11L)
        fed = self.ffn(modulate(rms_norm(x_BTD), shift2, scale2))
        return torch.addcmul(x_BTD, gate2, fed)
""",
        """\
        fed = self.ffn(modulate(rms_norm(x_BTD), shift2, scale2))
        x_BTD = torch.addcmul(x_BTD, gate2, fed)
        return x_BTD + self.cross_attention(self.cross_norm(x_BTD), key_value, mask_B11L)
""",
        REFERENCE,
    ),
    Mutant(
        "block: the gate of self-attention forgotten",
        TR_DIT_LAYERS,
        "x_BTD = torch.addcmul(x_BTD, gate1, attended)",
        "x_BTD = x_BTD + attended",
        REFERENCE,
    ),
    Mutant(
        "block: the gate of the FFN forgotten",
        TR_DIT_LAYERS,
        "return torch.addcmul(x_BTD, gate2, fed)",
        "return x_BTD + fed",
        REFERENCE,
    ),
    Mutant(
        "modulation: x scale + shift, without the 1",
        LAYERS,
        "torch.addcmul(shift_B1D, x_BTD, 1 + scale_B1D)",
        "torch.addcmul(shift_B1D, x_BTD, scale_B1D)",
        REFERENCE,
    ),
    Mutant(
        "SwiGLU: gate and value swapped",
        LAYERS,
        "gate, value = self.w1_w3(x_BTD).chunk(2, dim=-1)",
        "value, gate = self.w1_w3(x_BTD).chunk(2, dim=-1)",
        REFERENCE,
    ),
)

ATTENTION = (
    Mutant(
        "self-attention: no norm of queries and keys",
        LAYERS,
        "rms_norm(qk_BT2HC) * self.qk_scale",
        "qk_BT2HC * self.qk_scale",
        REFERENCE,
    ),
    Mutant(
        "self-attention: the scale of keys on queries and the reverse",
        LAYERS,
        "self.qk_scale.to(qk_BT2HC.dtype)",
        "self.qk_scale.flip(0).to(qk_BT2HC.dtype)",
        REFERENCE,
    ),
    Mutant(
        "self-attention: queries and keys are not rotated",
        LAYERS,
        "rotate(qk_BT2HC, together).unbind(2)",
        "qk_BT2HC.unbind(2)",
        REFERENCE,
    ),
    Mutant(
        "cross-attention: no norm of queries",
        LAYERS,
        "rms_norm(query_BTHC) * self.query_scale",
        "query_BTHC * self.query_scale",
        REFERENCE,
    ),
    Mutant(
        "cross-attention: no norm of keys",
        LAYERS,
        "rms_norm(key_BLHC) * self.key_scale",
        "key_BLHC * self.key_scale",
        REFERENCE,
    ),
    Mutant(
        "cross-attention: keys and values swapped",
        LAYERS,
        "key_BLHC, value_BLHC = kv_BL2HC.unbind(2)",
        "value_BLHC, key_BLHC = kv_BL2HC.unbind(2)",
        REFERENCE,
    ),
    Mutant(
        "cross-attention: the text mask is ignored",
        LAYERS,
        "attend(query_BTHC.transpose(1, 2), *key_value, mask)",
        "attend(query_BTHC.transpose(1, 2), *key_value, None)",
        REFERENCE,
    ),
)

REFINER = (
    Mutant(
        "refiner: the text mask is ignored",
        TR_DIT_LAYERS,
        "self.attention(self.attention_norm(x_BLD), rotation, mask_B11L)",
        "self.attention(self.attention_norm(x_BLD), rotation)",
        REFERENCE,
    ),
    Mutant(
        "refiner: causal",
        TR_DIT_LAYERS,
        "x_BLD = block(x_BLD, rotation, mask_B11L)",
        "x_BLD = block(x_BLD, rotation, mask_B11L & x_BLD.new_ones(2 * x_BLD.shape[1:2]).tril().bool())",
        REFERENCE,
    ),
    Mutant(
        "refiner: without positions",
        TR_DIT_LAYERS,
        "rotation = text_rotation(x_BLD.shape[1], self.head_width, x_BLD.device)",
        "rotation = text_rotation(1, self.head_width, x_BLD.device)",
        REFERENCE,
    ),
    Mutant(
        "refiner: without its last norm",
        TR_DIT_LAYERS,
        "return self.norm(x_BLD)",
        "return x_BLD",
        REFERENCE,
    ),
    Mutant(
        "refiner: without its first norm",
        TR_DIT_LAYERS,
        "self.input(self.input_norm(text_BLE.to(self.input.weight.dtype)))",
        "self.input(text_BLE.to(self.input.weight.dtype))",
        REFERENCE,
    ),
    Mutant(
        "refiner: no norm before attention",
        TR_DIT_LAYERS,
        "self.attention(self.attention_norm(x_BLD), rotation, mask_B11L)",
        "self.attention(x_BLD, rotation, mask_B11L)",
        REFERENCE,
    ),
    Mutant(
        "refiner: the last layer left out",
        TR_DIT_LAYERS,
        "for block in self.blocks:",
        "for block in self.blocks[:-1]:",
        REFERENCE,
    ),
)

TIME_AND_HEAD = (
    Mutant(
        "time: no SiLU before the modulations",
        TR_DIT,
        "time_BD=F.silu(add_scale(self.time(timestep_B), self.scale, guidance_scale_B))",
        "time_BD=add_scale(self.time(timestep_B), self.scale, guidance_scale_B)",
        REFERENCE,
    ),
    Mutant(
        "time: no SiLU within the MLP",
        LAYERS,
        "self.out(F.silu(self.hidden(sinusoids)))",
        "self.out(self.hidden(sinusoids))",
        REFERENCE,
    ),
    Mutant(
        "time: sines before cosines",
        LAYERS,
        "torch.cat((angles.cos(), angles.sin()), dim=-1)",
        "torch.cat((angles.sin(), angles.cos()), dim=-1)",
        REFERENCE,
    ),
    Mutant(
        "time: turned around",
        LAYERS,
        "scale * timestep_B.float()[:, None]",
        "scale * (1 - timestep_B).float()[:, None]",
        REFERENCE,
    ),
    Mutant(
        "guidance scale: not added to time",
        LAYERS,
        "time_BD if embedding is None else time_BD + embedding(guidance_scale_B)",
        "time_BD",
        REFERENCE,
    ),
    Mutant(
        "head: shift and scale swapped",
        TR_DIT_LAYERS,
        "shift, scale = self.modulation(time_BD)",
        "scale, shift = self.modulation(time_BD)",
        REFERENCE,
    ),
    Mutant(
        "head: no norm",
        TR_DIT_LAYERS,
        "modulate(rms_norm(x_BTD), shift, scale)",
        "modulate(x_BTD, shift, scale)",
        REFERENCE,
    ),
    Mutant(
        "patches: columns before rows on the way in",
        TR_DIT,
        "self.patch(patches.flatten(2).transpose(1, 2))",
        "self.patch(patches.transpose(2, 3).flatten(2).transpose(1, 2))",
        REFERENCE,
    ),
    Mutant(
        "patches: pixels before channels on the way in",
        TR_DIT,
        "self.patch(patches.flatten(2).transpose(1, 2))",
        "self.patch(patches.unflatten(1, (-1, patch_size**2)).transpose(1, 2).flatten(1, 2)"
        ".flatten(2).transpose(1, 2))",
        REFERENCE,
    ),
    Mutant(
        "patches: pixels before channels on the way out",
        TR_DIT,
        "F.pixel_shuffle(grid_BPhw, self.config.patch_size)",
        "F.pixel_shuffle(grid_BPhw.unflatten(1, (self.config.patch_size**2, -1)).transpose(1, 2)"
        ".flatten(1, 2), self.config.patch_size)",
        REFERENCE,
    ),
)

PLACES = (
    Mutant(
        "absolute positions: not added",
        TR_DIT,
        "tokens_BTD = tokens_BTD + positions_TD.to(tokens_BTD.dtype)",
        "pass",
        REFERENCE,
    ),
    Mutant(
        "absolute positions: x before y",
        POSITIONS,
        "torch.cat(waves_2TE.unbind(0), dim=-1)",
        "torch.cat(waves_2TE.flip(0).unbind(0), dim=-1)",
        REFERENCE,
    ),
    Mutant(
        "absolute positions: the shorter side is shrunk",
        POSITIONS,
        "dtype=torch.float32) + 1 - side) / side",
        "dtype=torch.float32) + 1 - side) / max(height, width)",
        REFERENCE,
    ),
    Mutant(
        "absolute positions: frequencies up to 10 pi, whatever the grid",
        POSITIONS,
        "return min(math.pi * smallest_grid / 2, HIGHEST_FREQUENCY)",
        "return HIGHEST_FREQUENCY",
        REFERENCE,
    ),
    Mutant(
        "RoPE: x before y",
        ROPE,
        "torch.cat(angles_T2HR.unbind(1), dim=-1)",
        "torch.cat(angles_T2HR.flip(1).unbind(1), dim=-1)",
        REFERENCE,
    ),
    Mutant(
        "RoPE: the shorter side is not shrunk",
        ROPE,
        "dtype=torch.float32) + 1 - height) / longer",
        "dtype=torch.float32) + 1 - height) / height",
        REFERENCE,
    ),
    Mutant(
        "RoPE: frequencies dealt out to heads in blocks",
        ROPE,
        "frequencies.view(head_width // 8, num_heads).T",
        "frequencies.view(num_heads, head_width // 8)",
        REFERENCE,
    ),
    Mutant(
        "RoPE: pairs turn the other way",
        ROPE,
        "(first * cos - second * sin, second * cos + first * sin, rest)",
        "(first * cos + second * sin, second * cos + first * sin, rest)",
        REFERENCE,
    ),
)

ROUTES = (
    Mutant(
        "routes: the last layer is excluded",
        ROUTING,
        """\
        routed = [] if skip_deep_path else blocks_left(first, last + 1, skip_blocks)
        yield Segment(routed, kept and kept.of_route(number), is_route=True)
        yield Segment(blocks_left(last + 1, next_routed[number], skip_blocks))
""",
        """\
        routed = [] if skip_deep_path else blocks_left(first, last, skip_blocks)
        yield Segment(routed, kept and kept.of_route(number), is_route=True)
        yield Segment(blocks_left(last, next_routed[number], skip_blocks))
""",
        REFERENCE,
    ),
    Mutant(
        "routes: kept tokens take the positions of the first ones",
        TR_DIT,
        "rotation.rows(kept.ids_BK)",
        "rotation.rows(torch.arange(kept.ids_BK.shape[1]).expand_as(kept.ids_BK))",
        REFERENCE,
    ),
    Mutant(
        "routes: every route takes the first draw",
        ROUTING,
        "Kept(self.ids_BK[number], None if self.mask_BK is None else self.mask_BK[number])",
        "Kept(self.ids_BK[0], None if self.mask_BK is None else self.mask_BK[0])",
        REFERENCE,
    ),
    Mutant(
        "routes: tokens that stepped aside come back as zeros",
        ROUTING,
        "merged = tokens_BTD.flatten(0, 1).index_copy(",
        "merged = torch.zeros_like(tokens_BTD).flatten(0, 1).index_copy(",
        REFERENCE,
    ),
    Mutant(
        "routes: places that fill up a row are attended to",
        TR_DIT,
        "mask_B11T = None if kept.mask_BK is None else kept.mask_BK[:, None, None, :]",
        "mask_B11T = None",
        REFERENCE,
    ),
    Mutant(
        "routes: places that fill up a row come back changed",
        ROUTING,
        "kept_BKD = kept_BKD.where(keep_mask_BK.unsqueeze(-1), before_BKD)",
        "pass",
        REFERENCE,
    ),
)

MUTANTS = (*BLOCK, *ATTENTION, *REFINER, *TIME_AND_HEAD, *PLACES, *ROUTES)
