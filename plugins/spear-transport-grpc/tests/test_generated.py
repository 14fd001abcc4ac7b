"""What is generated is what the protos say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent


def test_generating_again_gives_the_same_bytes() -> None:
    if sys.version_info >= (3, 13):
        pytest.skip("the protoc of the oldest supported protobuf has no wheel for this Python")
    done = subprocess.run(
        [sys.executable, str(HERE / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_our_descriptors_keep_out_of_everybodys_pool() -> None:
    """Another edition of the public protos may be loaded beside ours."""
    code = """
from google.protobuf import descriptor_pb2, descriptor_pool
other = descriptor_pb2.FileDescriptorProto(name="google/rpc/status.proto", package="google.rpc")
other.message_type.add(name="Status").field.add(name="x", number=9, type=5, label=1)
descriptor_pool.Default().Add(other)
import spear_transport_grpc._services, spear_transport_grpc._health
"""
    subprocess.run([sys.executable, "-c", code], check=True)
