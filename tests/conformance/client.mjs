// Makes the calls it is told to make with @grpc/grpc-js, and says what it saw.
//
// The twin of grpcio_client.py, whose docstring has the format of both. It knows no case and expects nothing. The
// contract is read from proto/, the standard services from the descriptors in the file that is named by its argument.

import fs from "node:fs";
import path from "node:path";
import readline from "node:readline";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const FORMAT = { keepCase: true, longs: String, enums: String, bytes: String };
const PROTO = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../proto");
const NAMES = Object.fromEntries(Object.entries(grpc.status).map(([name, code]) => [code, name]));
const RAW = { requestSerialize: (data) => data, responseDeserialize: (data) => data.toString("base64") };
const input = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const nextOrder = async () => (await input.next()).value;

const localFiles = fs.readdirSync(path.join(PROTO, "edgephi/v1")).filter((name) => name.endsWith(".proto"));
const LOCAL = {
  ...protoLoader.loadSync(localFiles.map((name) => `edgephi/v1/${name}`), { ...FORMAT, includeDirs: [PROTO] }),
  ...protoLoader.loadFileDescriptorSetFromBuffer(fs.readFileSync(process.argv[2]), FORMAT),
};

function findMethod(known, name) {
  const [service, method] = name.replace(/^\//, "").split("/");
  const found = known[service]?.[method];
  return found ?? { requestStream: false, responseStream: false, ...RAW };
}

function metadataOf(pairs) {
  const metadata = new grpc.Metadata();
  for (const [key, value] of pairs) {
    metadata.add(key, key.endsWith("-bin") ? Buffer.from(value, "base64") : value);
  }
  return metadata;
}

function pairsOf(metadata) {
  return Object.keys(metadata?.getMap() ?? {}).sort().flatMap((key) =>
    metadata.get(key).map((value) => [key, Buffer.isBuffer(value) ? value.toString("base64") : value]));
}

function credentialsOf(tls) {
  const pem = (name) => (tls[name] ? fs.readFileSync(tls[name]) : null);
  return tls ? grpc.credentials.createSsl(pem("ca"), pem("key"), pem("cert")) : grpc.credentials.createInsecure();
}

function requestOf(spec, request) {
  if (spec.raw !== undefined) return Buffer.from(spec.raw, "base64");
  // A field may be told as the length of its text, so that large requests do not pass through a pipe.
  return JSON.parse(JSON.stringify(request), (_, value) =>
    value !== null && typeof value === "object" && Object.hasOwn(value, "fill") ? "x".repeat(value.fill) : value);
}

function seenOf(spec) {
  return { started: performance.now(), messages: [], initial: [], spec };
}

function reportOf(seen, status) {
  return {
    code: NAMES[status.code],
    details: status.details,
    messages: seen.messages,
    initial: seen.initial,
    trailing: pairsOf(status.metadata),
    elapsed_s: (performance.now() - seen.started) / 1000,
  };
}

async function start(client, known, spec) {
  const found = findMethod(known, spec.method);
  const method = spec.raw === undefined ? found : { ...found, ...RAW };
  const requests = (spec.requests ?? [{}]).map((request) => requestOf(spec, request));
  const options = spec.timeout_s === undefined ? {} : { deadline: Date.now() + spec.timeout_s * 1000 };
  const rest = [metadataOf(spec.metadata ?? []), options];
  const common = [spec.method, method.requestSerialize, method.responseDeserialize];
  const seen = seenOf(spec);
  const call = method.requestStream
    ? client.makeBidiStreamRequest(...common, ...rest)
    : method.responseStream
      ? client.makeServerStreamRequest(...common, requests[0], ...rest)
      : client.makeUnaryRequest(...common, requests[0], ...rest, (_, message) => message && seen.messages.push(message));
  call.on("metadata", (metadata) => { seen.initial = pairsOf(metadata); });
  call.on("error", () => {}); // the same as the status, which follows
  if (method.requestStream) {
    requests.forEach((request) => call.write(request));
    call.end();
  }
  const ended = method.requestStream || method.responseStream ? readStream(call, seen) : readUnary(call, seen);
  if (spec.pause_after === 0) await pause();
  if (spec.cancel_after === 0) call.cancel();
  return ended;
}

async function pause() {
  say({ paused: true });
  await nextOrder();
}

// A unary call's status and its callback come in either order.
function readUnary(call, seen) {
  return new Promise((resolve) => {
    call.on("status", (status) => setImmediate(() => resolve(reportOf(seen, status))));
  });
}

function readStream(call, seen) {
  return new Promise((resolve) => {
    call.on("data", async (message) => {
      const count = seen.messages.push(message);
      if (count === seen.spec.pause_after) {
        call.pause();
        await pause();
        call.resume();
      }
      if (count === seen.spec.cancel_after) call.cancel();
    });
    call.on("status", (status) => {
      // A status overtakes messages that were not read yet; they are part of what was received.
      const done = () => resolve(reportOf(seen, status));
      if (call.readableEnded || call.destroyed || status.code !== grpc.status.OK) setImmediate(done);
      else call.once("end", done);
    });
  });
}

async function run(order) {
  const known = order.descriptors
    ? protoLoader.loadFileDescriptorSetFromBuffer(Buffer.from(order.descriptors, "base64"), FORMAT)
    : LOCAL;
  const options = { "grpc.use_local_subchannel_pool": 1, "grpc.enable_retries": 0, ...order.options };
  const client = new grpc.Client(order.target, credentialsOf(order.tls), options);
  try {
    const seen = [];
    for (const spec of order.calls) {
      seen.push(...await Promise.all(Array.from({ length: spec.copies ?? 1 }, () => start(client, known, spec))));
    }
    return seen;
  } finally {
    client.close();
  }
}

say({ ready: true });
for (let line = await nextOrder(); line !== undefined; line = await nextOrder()) {
  try {
    say({ seen: await run(JSON.parse(line)) });
  } catch (error) {
    say({ failed: String(error?.stack ?? error) });
  }
}
process.exit(0);
