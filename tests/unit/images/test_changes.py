"""The instructions of an import; the expected config is the real engine's."""

from __future__ import annotations

import errdefs
import pytest
from dockerd_api.images import changes


def test_all_of_them() -> None:
    config = changes.apply(
        [
            'CMD ["a"]',
            "ENTRYPOINT foo bar",
            "ENV A=b C=d",
            "env E two words",
            "EXPOSE 80 90/udp 100-101",
            'LABEL x="y z" q=1',
            "HEALTHCHECK --interval=5s --retries=3 CMD true",
            "VOLUME /data /more",
            'VOLUME ["/json"]',
            "ONBUILD RUN x",
            "STOPSIGNAL 9",
            "WORKDIR /x",
            "WORKDIR y",
            "USER me",
        ]
    )
    assert config == {
        "Cmd": ["a"],
        "Entrypoint": ["/bin/sh", "-c", "foo bar"],
        "Env": ["A=b", "C=d", "E=two words"],
        "ExposedPorts": {"80/tcp": {}, "90/udp": {}, "100/tcp": {}, "101/tcp": {}},
        "Labels": {"x": "y z", "q": "1"},
        "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 5 * 10**9, "Retries": 3},
        "Volumes": {"/data": {}, "/more": {}, "/json": {}},
        "OnBuild": ["RUN x"],
        "StopSignal": "9",
        "WorkingDir": "/x/y",
        "User": "me",
    }


def test_a_base() -> None:
    base = {"Cmd": ["old"], "Env": ["A=1", "PATH=/bin"], "Labels": None}
    config = changes.apply(['ENTRYPOINT ["new"]', "ENV A=2"], base)
    assert config == {"Entrypoint": ["new"], "Env": ["PATH=/bin", "A=2"]}
    assert base == {"Cmd": ["old"], "Env": ["A=1", "PATH=/bin"], "Labels": None}
    config = changes.apply(['CMD ["mine"]', 'ENTRYPOINT ["new"]'], base)
    assert (config["Cmd"], config["Entrypoint"]) == (["mine"], ["new"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("ENV PATH=$PATH:/x", ['A=1 "z', "PATH=/bin:/x"]),
        ("ENV B=$A C=${A}", ['A=1 "z', "PATH=/bin", 'B=1 "z', 'C=1 "z']),
        ('ENV B="it\'s $A"', ['A=1 "z', "PATH=/bin", "B=it's 1 \"z"]),
        ("ENV B='$A' C=\\$A", ['A=1 "z', "PATH=/bin", "B=$A", "C=$A"]),
        ("ENV B=${NO:-x}${A:+y}$NO", ['A=1 "z', "PATH=/bin", "B=xy"]),
        ("ENV B in $PATH", ['A=1 "z', "PATH=/bin", "B=in /bin"]),
    ],
)
def test_variables(change: str, expected: list[str]) -> None:
    assert changes.apply([change], {"Env": ['A=1 "z', "PATH=/bin"]})["Env"] == expected


def test_variables_without_a_value() -> None:
    assert changes.apply(["USER $NONE", "EXPOSE $NONE", "ENV A=$NONE"]) == {
        "User": "",
        "ExposedPorts": {},
        "Env": ["A="],
    }


def test_where_variables_are_replaced() -> None:
    config = changes.apply(
        ["ENV A=/a", "WORKDIR $A", "VOLUME $A", 'LABEL l="$A"', 'CMD ["$A"]', "ENTRYPOINT $A"]
    )
    assert (config["WorkingDir"], config["Volumes"], config["Labels"]) == ("/a", {"/a": {}}, {"l": "/a"})
    assert (config["Cmd"], config["Entrypoint"][-1]) == (["$A"], "$A")


def test_later_wins() -> None:
    config = changes.apply(["ENV A=1\nENV A=2", "HEALTHCHECK NONE"])
    assert config == {"Env": ["A=2"], "Healthcheck": {"Test": ["NONE"]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("FOO bar", "FOO is not a valid change command"),
        ("RUN true", "RUN is not a valid change command"),
        ("CMD", "CMD requires at least one argument"),
        ("ENV A=${B#x}", 'unsupported modifier in "A=${B#x}"'),
        ("WORKDIR $NONE", "cannot normalize nothing"),
        ("VOLUME $NONE", "VOLUME specified can not be an empty string"),
        ("STOPSIGNAL $NONE", "invalid signal: "),
        ("EXPOSE 0", "invalid containerPort: 0"),
        ("EXPOSE x", "invalid containerPort: x"),
        ("EXPOSE 70000", "invalid containerPort: 70000"),
        ("ENV A=1 B", 'Syntax error - can\'t find = in "B". Must be of the form: name=value'),
        ("HEALTHCHECK --interval=x CMD a", 'time: invalid duration "x"'),
        ("HEALTHCHECK --foo=1 CMD a", "unknown flag: foo"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
    ],
)
def test_refused(change: str, message: str) -> None:
    with pytest.raises(errdefs.InvalidArgument) as caught:
        changes.apply([change])
    assert caught.value.message == message
