"""Proves a model's folder: its class is checked. Weights that do not fit: see test_tr_dit.py."""

import json

import pytest

from t2i.models.mask_dit import load_mask_dit
from t2i.models.sit import SiT, load_sit
from t2i.models.sit_config import SiTConfig
from t2i.models.storage import CLASS_KEY, CONFIG_NAME, save_transformer
from t2i.models.tr_dit import load_transformer

CONFIG = SiTConfig(num_layers=1, width=16, num_heads=2, num_classes=3, routes=())


def test_a_folder_of_another_class_is_refused(tmp_path):
    save_transformer(SiT.from_config(CONFIG), tmp_path)
    assert load_sit(tmp_path).config == CONFIG
    with pytest.raises(ValueError, match=r"config\.json: holds a SiT, not a TRDiT"):
        load_transformer(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: holds a SiT, not a MaskDiT"):
        load_mask_dit(tmp_path)


def test_the_config_names_its_class_and_all_of_its_values(tmp_path):
    save_transformer(SiT.from_config(CONFIG), tmp_path)
    values = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert values.pop(CLASS_KEY) == "SiT"
    assert SiTConfig.model_validate(values) == CONFIG
    assert values.keys() == SiTConfig.model_fields.keys()
