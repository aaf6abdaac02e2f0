"""Documents of registries that could be read in two ways."""

from __future__ import annotations

import errdefs
import pytest
from containerd_svc.registry import documents
from containerd_svc.registry.documents import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

_INDEX = '"manifests": []'
_IMAGE = '"config": {}, "layers": []'


@pytest.mark.parametrize(
    ("body", "wanted", "header"),
    [
        (f"{{{_INDEX}, {_IMAGE}}}", OCI_INDEX, OCI_INDEX),
        (f"{{{_INDEX}, {_IMAGE}}}", "", ""),
        (f"{{{_INDEX}}}", OCI_MANIFEST, OCI_MANIFEST),
        (f"{{{_IMAGE}}}", OCI_INDEX, OCI_INDEX),
        (f"{{{_IMAGE}}}", OCI_MANIFEST, DOCKER_MANIFEST),
        (f'{{"mediaType": "{OCI_INDEX}", {_IMAGE}}}', OCI_MANIFEST, OCI_MANIFEST),
        (f'{{"mediaType": 1, {_IMAGE}}}', OCI_MANIFEST, OCI_MANIFEST),
        (f'{{{_IMAGE}, "layers": [1]}}', OCI_MANIFEST, OCI_MANIFEST),
        (f'{{{_IMAGE}, "fsLayers": []}}', OCI_MANIFEST, OCI_MANIFEST),
        ("[]", OCI_MANIFEST, OCI_MANIFEST),
        ("[" * 100_000, OCI_MANIFEST, OCI_MANIFEST),
    ],
)
def test_what_is_ambiguous(body: str, wanted: str, header: str) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        documents.check_kind(body.encode(), wanted, header)


def test_what_is_not() -> None:
    for kind, body in ((OCI_MANIFEST, f"{{{_IMAGE}}}"), (OCI_INDEX, f"{{{_INDEX}}}")):
        documents.check_kind(body.encode(), kind, kind)
        documents.check_kind(body.encode(), kind, "application/octet-stream")


def test_what_headers_describe() -> None:
    digest = f"sha256:{'a' * 64}"
    whole = {"docker-content-digest": digest, "content-length": "7", "content-type": f"{OCI_MANIFEST}; x=y"}
    assert documents.described(whole, "") == {"mediaType": OCI_MANIFEST, "digest": digest, "size": 7}
    assert documents.described({**whole, "content-type": "text/plain"}, "") is None
    with pytest.raises(errdefs.InvalidArgument):
        documents.described(whole, f"sha256:{'b' * 64}")
    with pytest.raises(errdefs.InvalidArgument):
        documents.described({**whole, "docker-content-digest": "md5:00"}, "")
    with pytest.raises(errdefs.InvalidArgument, match="no longer supported"):
        documents.supported({"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"})
