"""The nginx of containers/, on this machine: only addresses and folders are others."""

import re
from pathlib import Path

PROGRAM = Path("/usr/sbin/nginx")
CONFIGURATION = Path(__file__).parents[2] / "containers" / "nginx" / "nginx.conf"


def configuration(folder: Path, *, port: int, brokers: list[str]) -> Path:
    """A configuration to start nginx with.

    Args:
        folder: For its pid, its log and what it puts aside.
        port: Where it listens.
        brokers: `host:port` of each broker.

    Returns:
        The file.
    """
    text = CONFIGURATION.read_text()
    servers = re.findall(r"^ +server (\S+) resolve (.+);\n", text, re.MULTILINE)
    assert len(servers) == len(brokers), "each broker takes the place of one"
    for (name, options), broker in zip(servers, brokers, strict=True):
        # `resolve` is for names, and needs a name server that is not here.
        text = text.replace(f"server {name} resolve {options};", f"server {broker} {options};")
    text, listens = re.subn(r"^( +listen) 8080 ", rf"\1 127.0.0.1:{port} ", text, flags=re.MULTILINE)
    assert listens == 1
    file = folder / "nginx.conf"
    file.write_text(text.replace("/tmp/", f"{folder}/").replace("/dev/stdout", str(folder / "access.log")))
    return file
