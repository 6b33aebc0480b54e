// Runs a step graph in onnxruntime-web: node run_step_graph.mjs PACKAGES GRAPH REQUEST LOGITS.
// PACKAGES is a folder with node_modules/onnxruntime-web; REQUEST has ids, speakers [T] and the shapes of the states;
// LOGITS gets float32 [T, V].
import fs from 'node:fs';
import path from 'node:path';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [packages, graph, requestFile, logitsFile] = process.argv.slice(2);
const entry = createRequire(path.resolve(packages) + path.sep).resolve('onnxruntime-web');
const loaded = await import(pathToFileURL(entry));
const ort = loaded.InferenceSession ? loaded : loaded.default;
ort.env.wasm.numThreads = 1;
const request = JSON.parse(fs.readFileSync(requestFile, 'utf-8'));
const session = await ort.InferenceSession.create(fs.readFileSync(graph), { executionProviders: ['wasm'] });
const number = (values) => new ort.Tensor('int64', BigInt64Array.from(values.map(BigInt)), [1, values.length]);
let state = {};
for (const [name, shape] of Object.entries(request.states)) {
  const size = shape.reduce((a, b) => a * b, 1);
  state[name] = name === 'past_tokens'
    ? new ort.Tensor('int64', new BigInt64Array(size), shape)
    : new ort.Tensor('float32', new Float32Array(size), shape);
}
const output = fs.openSync(logitsFile, 'w');
const began = performance.now();
for (let t = 0; t < request.ids.length; t++) {
  const feeds = { input_ids: number([request.ids[t]]), token_type_ids: number([request.speakers[t]]), ...state };
  const { logits, ...rest } = await session.run(feeds);
  fs.writeSync(output, Buffer.from(logits.data.buffer, logits.data.byteOffset, logits.data.byteLength));
  state = Object.fromEntries(Object.entries(rest).map(([name, x]) => [name.replace('present', 'past'), x]));
}
fs.closeSync(output);
console.log(JSON.stringify({
  version: ort.env.versions?.web ?? '', tokens_per_second: request.ids.length / (performance.now() - began) * 1000,
}));
