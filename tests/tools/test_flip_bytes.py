"""The tool finds flips that pass in silence, and leaves the file as it was."""

from medadv_jax.errors import UserError
from tools.flip_bytes import flip


def test_flips_are_told_apart(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abcd")

    def read():
        found = path.read_bytes()
        if found[0] != ord("a"):
            raise UserError("damaged")
        if found[1] != ord("b"):
            raise ValueError("unclear")
        return found[2]  # the last byte changes nothing

    found = flip(path, 1, read)
    assert found == {"clear line": 1, "unclear error": 1, "silent": 1, "same result": 1}
    assert path.read_bytes() == b"abcd"
