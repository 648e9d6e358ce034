# SPDX-License-Identifier: Apache-2.0
"""The manifest is what Kubernetes takes."""

import kubernetes_validate
import pytest
import yaml

from tests.docs.blocks import ROOT

MANIFEST = ROOT / "examples/deploy/kubernetes.yaml"
OBJECTS = list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("manifest", OBJECTS, ids=lambda manifest: manifest["kind"])
def test_object_fits_the_schema(manifest: dict[str, object], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)
