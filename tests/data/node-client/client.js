// Usage: node client.js PROTO_DIR ADDRESS; prints what it saw as one JSON document.
"use strict";

const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [protos, address] = process.argv.slice(2);
const files = ["function", "task", "artifact", "object"].map((name) => `spear/v1/${name}.proto`);
const definition = loader.loadSync(files, { includeDirs: [protos], keepCase: true, enums: String });
const { spear } = grpc.loadPackageDefinition(definition);
const open = (name) => new spear.v1[name](address, grpc.credentials.createInsecure());
const functions = open("FunctionService");
const tasks = open("TaskService");
const artifacts = open("ArtifactService");
const store = open("ObjectService");

const ask = (client, method, request, options = {}) =>
  new Promise((resolve, reject) =>
    client[method](request, options, (error, answer) => (error ? reject(error) : resolve(answer))),
  );

function deploy(filename, code) {
  return new Promise((resolve, reject) => {
    const call = artifacts.DeployArtifact((error, answer) => (error ? reject(error) : resolve(answer)));
    const name = filename.split(".")[0];
    call.write({ header: { name, filename, size: code.length, executable: true } });
    call.write({ chunk: code });
    call.end();
  });
}

function stream(name, lines) {
  return new Promise((resolve, reject) => {
    const call = functions.StreamFunction();
    const seen = { output: "", ended: false };
    call.on("data", (message) => {
      if (message.opened) {
        seen.task_id = message.opened.task_id;
        for (const line of lines) call.write({ data: Buffer.from(line) });
        call.end();
      }
      if (message.data) seen.output += message.data.toString();
      if (message.end_of_output) seen.ended = true;
      if (message.finished) seen.success = message.finished.success;
    });
    call.on("error", reject);
    call.on("end", () => resolve(seen));
    call.write({ open: { function: name } });
  });
}

function put(key, pieces, { expect, commit }) {
  return new Promise((resolve, reject) => {
    const call = store.PutObject((error, answer) => (error ? reject(error) : resolve(answer)));
    const size = pieces.reduce((sum, piece) => sum + piece.length, 0);
    call.write({ header: { key, expect, size, content_type: "text/plain" } });
    for (const chunk of pieces) call.write({ chunk });
    if (commit) call.write({ commit: { size } });
    call.end();
  });
}

function get(request) {
  return new Promise((resolve, reject) => {
    const call = store.GetObject(request);
    const pieces = [];
    let stat;
    call.on("data", (message) => {
      if (message.stat) stat = message.stat;
      if (message.chunk) pieces.push(message.chunk);
    });
    call.on("error", reject);
    call.on("end", () => resolve({ stat, value: Buffer.concat(pieces) }));
  });
}

async function objects() {
  const pieces = Array.from({ length: 20 }, (_, n) => Buffer.alloc(1 << 18, n));
  const value = Buffer.concat(pieces);
  const sha256 = require("crypto").createHash("sha256").update(value).digest("hex");
  const seen = {};
  seen.refused = await put("js/value", pieces, {}).then(
    () => 0,
    (error) => error.code,
  );
  const stat = await put("js/value", pieces, { expect: { version: 0 }, commit: true });
  seen.put = { size: Number(stat.size), version: Number(stat.version), same: stat.sha256 === sha256 };
  const got = await get({ key: "js/value" });
  seen.got = { same: got.value.equals(value), type: got.stat.content_type };
  const offset = 3_000_000;
  const rest = await get({ key: "js/value", version: got.stat.version, offset });
  seen.resumed = rest.value.equals(value.subarray(offset));
  const conflict = put("js/value", pieces, { expect: { version: 0 }, commit: true });
  seen.conflict = await conflict.catch((error) => ({
    code: error.code,
    rich: error.metadata.get("grpc-status-details-bin")[0].toString("latin1"),
  }));
  const page = await ask(store, "ListObjects", { prefix: "js/" });
  seen.listed = page.objects.map((each) => each.key);
  const answer = await ask(functions, "InvokeFunction", { function: "upper", input_object: "js/word" })
    .catch((error) => error.code);
  seen.missing = answer;
  await put("js/word", [Buffer.from("word")], { commit: true });
  const task = await ask(functions, "InvokeFunction", { function: "upper", input_object: "js/word" });
  seen.input = task.result.output.toString();
  return seen;
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function stateOf(taskId, wanted) {
  for (let n = 0; n < 500; n++) {
    const task = await ask(tasks, "GetTask", { task_id: taskId });
    if (task.state === wanted) return task.state;
    await sleep(20);
  }
  return "never";
}

async function cancelled() {
  const accepted = await ask(functions, "InvokeFunction", {
    function: "slow",
    mode: "EXECUTION_MODE_ASYNC",
  });
  await stateOf(accepted.task_id, "TASK_STATE_RUNNING");
  const task = await ask(tasks, "CancelTask", { task_id: accepted.task_id, reason: "enough" });
  return task.state;
}

async function abandoned() {
  // a call that waits is dropped by its client: its task must end
  const before = (await ask(tasks, "ListTasks", {})).tasks.length;
  const call = functions.InvokeFunction({ function: "slow" }, () => {});
  for (let n = 0; n < 500; n++) {
    const listed = (await ask(tasks, "ListTasks", {})).tasks;
    if (listed.length > before && listed[0].state === "TASK_STATE_RUNNING") {
      call.cancel();
      return stateOf(listed[0].task_id, "TASK_STATE_CANCELLED");
    }
    await sleep(20);
  }
  return "never";
}

async function main() {
  const seen = {};
  seen.deployed = (await deploy("upper.sh", Buffer.from("#!/bin/sh\nexec tr a-z A-Z\n"))).version;
  await deploy("slow.sh", Buffer.from("#!/bin/sh\nsleep 60\n"));

  const answer = await ask(functions, "InvokeFunction", {
    function: "upper",
    payload: Buffer.from("hello"),
  });
  seen.invoke = { success: answer.success, output: answer.result.output.toString() };

  const accepted = await ask(functions, "InvokeFunction", {
    function: "upper",
    payload: Buffer.from("later"),
    mode: "EXECUTION_MODE_ASYNC",
  });
  seen.accepted = { endpoint: accepted.status_endpoint, execution_id: accepted.execution_id };
  const task = await ask(tasks, "GetTask", { task_id: accepted.status_endpoint, wait: true });
  seen.waited = { state: task.state, output: task.result.output.toString() };

  seen.objects = await objects();
  seen.stream = await stream("upper", ["one\n", "two\n", "three\n"]);
  seen.cancelled = await cancelled();
  seen.abandoned = await abandoned();

  try {
    await ask(functions, "InvokeFunction", { function: "nobody" });
  } catch (error) {
    seen.error = {
      code: error.code,
      details: error.details,
      rich: error.metadata.get("grpc-status-details-bin")[0].toString("latin1"),
    };
  }
  try {
    const deadline = Date.now() + 500;
    const late = await ask(functions, "InvokeFunction", { function: "slow" }, { deadline });
    seen.deadline = late.result.status;
  } catch (error) {
    seen.deadline = error.code; // the answer came too late to be heard
  }
  console.log(JSON.stringify(seen));
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
