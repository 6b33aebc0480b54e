"use strict";
// The C runtime in a worker. Messages in: {wasm, weights}, {id, turns, seed, settings}, {stop: id}.
// Messages out: {ready, defaults}, {id, text, done, reason, ids}, {id, fault}, {failed}.
let runtime, chat, stopped = new Set();
const REASONS = ["stopped", "eos", "floor", "limit", "safety"];
const encoder = new TextEncoder(), decoder = new TextDecoder();
const bytes = () => new Uint8Array(runtime.memory.buffer);
const view = () => new DataView(runtime.memory.buffer);

function textAt(address, size) {
  if (size === undefined) size = bytes().indexOf(0, address) - address;
  return decoder.decode(bytes().subarray(address, address + size));
}

async function start(wasm, weights) {
  const module = await WebAssembly.compile(wasm), imports = {};
  for (const { module: room, name } of WebAssembly.Module.imports(module))
    (imports[room] ??= {})[name] = () => 52; // the runtime has no files: "not supported"
  runtime = (await WebAssembly.instantiate(module, imports)).exports;
  runtime._initialize();
  const size = weights.byteLength, address = runtime.malloc(size), fault = runtime.malloc(256);
  bytes().set(new Uint8Array(weights), address);
  const bot = runtime.xl_open_memory(address, BigInt(size), fault, 256n);
  if (!bot) throw new Error(textAt(fault));
  chat = runtime.xl_chat(bot);
  const numbers = runtime.xl_settings(bot);
  const defaults = Array.from({ length: 15 }, (_, i) => view().getFloat64(numbers + 8 * i, true));
  postMessage({ ready: true, defaults });
}

function begin({ turns, seed, settings }) {
  const parts = turns.map((turn) => encoder.encode(turn.toWellFormed ? turn.toWellFormed() : turn));
  const total = parts.reduce((sum, part) => sum + part.length, 0);
  const text = runtime.malloc(total + 1), sizes = runtime.malloc(4 * parts.length + 4), numbers = runtime.malloc(8 * 15);
  let at = text;
  parts.forEach((part, i) => {
    bytes().set(part, at);
    at += part.length;
    view().setInt32(sizes + 4 * i, part.length, true);
  });
  settings.forEach((value, i) => view().setFloat64(numbers + 8 * i, value, true));
  const failed = runtime.xl_begin(chat, text, sizes, parts.length, BigInt(seed), numbers, 1);
  [text, sizes, numbers].forEach((address) => runtime.free(address));
  return !failed;
}

const pause = new MessageChannel(), waiting = [];
pause.port1.onmessage = () => waiting.shift()();
const turn = () => new Promise((resolve) => { waiting.push(resolve); pause.port2.postMessage(0); });

async function answer(request) {
  const { id } = request, count = runtime.malloc(8);
  let running = begin(request) ? 1 : -1;
  while (running > 0) {
    running = runtime.xl_step(chat);
    if (running < 0) break;
    const address = runtime.xl_text(chat), text = textAt(address, Number(runtime.xl_text_bytes(chat)));
    const halted = running > 0 && stopped.delete(id), done = running === 0 || halted;
    const ids = runtime.xl_ids(chat, count), length = Number(view().getBigInt64(count, true));
    const tokens = done ? Array.from(new Int32Array(runtime.memory.buffer, ids, length)) : length;
    postMessage({ id, text, done, tokens, reason: halted ? "stopped" : REASONS[runtime.xl_reason(chat)] });
    if (halted) break;
    if (running) await turn(); // a stop may have arrived
  }
  runtime.free(count);
  if (running < 0) postMessage({ id, fault: textAt(runtime.xl_fault(chat)) });
}

let last = Promise.resolve();
onmessage = ({ data }) => {
  if (data.wasm) start(data.wasm, data.weights).catch((error) => postMessage({ failed: String(error.message || error) }));
  else if (data.stop !== undefined) stopped.add(data.stop);
  else last = last.then(() => answer(data)).catch((error) => postMessage({ id: data.id, fault: String(error.message || error) }));
};
