"""A foreign peer: a Node client with the stock `@grpc/grpc-js`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from featurestore.serve.grpc_client import OnlineClient
from featurestore.serve.proto import online_pb2 as pb
from featurestore.serve.server import ServerHandle

PACKAGE = "@grpc/grpc-js@1.14.7"
PROGRAM = """
const grpc = require('@grpc/grpc-js');
const [address, request] = process.argv.slice(1);
const same = (x) => x;
const method = (name, stream) => ({
  path: '/featurestore.v1.OnlineService/' + name, requestStream: stream, responseStream: stream,
  requestSerialize: same, requestDeserialize: same, responseSerialize: same, responseDeserialize: same });
const Client = grpc.makeGenericClientConstructor(
  { get: method('GetOnlineFeatures', false), stream: method('StreamOnlineFeatures', true) }, 'Online');
const client = new Client(address, grpc.credentials.createInsecure());
const body = Buffer.from(request, 'hex');
client.get(body, (error, answer) => {
  if (error) throw error;
  console.log(answer.toString('hex'));
  client.get(Buffer.from('ffff', 'hex'), (refused) => {
    console.log(refused.code);
    const call = client.stream();
    let seen = 0;
    call.on('data', () => { if (++seen === 100) call.end(); });
    call.on('end', () => { console.log(seen); client.close(); });
    for (let i = 0; i < 100; i++) call.write(body);
  });
});
"""


def node_modules() -> Path:
    """Return a folder with the Node package, installed on first use in the user's cache folder."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node is not installed")
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "featurestore-tests" / "node"
    if not (folder / "node_modules" / "@grpc").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--silent", "--prefix", str(folder), PACKAGE]
        if subprocess.run(command, check=False).returncode:
            pytest.skip(f"{PACKAGE} cannot be installed here")
    return folder / "node_modules"


@pytest.mark.soak
def test_a_node_client_reads_streams_and_is_refused_cleanly(
    server: ServerHandle, client: OnlineClient
) -> None:
    request = pb.GetOnlineFeaturesRequest(
        features=["quote"], entities=[pb.EntityColumn(name="symbol", strings=["IBM", "AIG"])]
    )
    node = shutil.which("node") or "node"
    environment = {**os.environ, "NODE_PATH": str(node_modules())}
    command = [node, "-e", PROGRAM, server.address, request.SerializeToString().hex()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    answer, refused, streamed = ran.stdout.split()
    found = pb.GetOnlineFeaturesResponse.FromString(bytes.fromhex(answer))
    assert list(found.schema.names) == ["bid", "ask", "mid", "venue", "size"]
    assert list(found.statuses)[:2] == [0, 3]
    assert (refused, streamed) == ("3", "100")
    assert client.get_online_features(["quote:bid"], {"symbol": ["IBM"]}).num_rows == 1
