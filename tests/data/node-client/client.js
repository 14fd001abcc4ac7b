// Usage: node client.js PROTO_DIR ADDRESS; prints what it saw as one JSON document.
"use strict";

const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [protos, address] = process.argv.slice(2);
const files = ["function", "task", "artifact"].map((name) => `spear/v1/${name}.proto`);
const definition = loader.loadSync(files, { includeDirs: [protos], keepCase: true, enums: String });
const { spear } = grpc.loadPackageDefinition(definition);
const open = (name) => new spear.v1[name](address, grpc.credentials.createInsecure());
const functions = open("FunctionService");
const tasks = open("TaskService");
const artifacts = open("ArtifactService");

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
  const task = await ask(tasks, "GetTask", { task_id: accepted.task_id, wait: true });
  seen.waited = { state: task.state, output: task.result.output.toString() };

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
