// tus-js-client, unchanged: node tus.js ENDPOINT FILE BOX. Prints the URL of the upload.
'use strict';
const fs = require('fs');
const path = require('path');
const tus = require('tus-js-client');

const [endpoint, file, box] = process.argv.slice(2);
const upload = new tus.Upload(fs.createReadStream(file), {
  endpoint,
  uploadSize: fs.statSync(file).size,
  metadata: {box, filename: path.basename(file)},
  retryDelays: [0, 50, 100, 200, 500],
  onError(error) {
    console.error(String(error));
    process.exitCode = 1;
  },
  onSuccess() {
    console.log(upload.url);
  },
});
upload.start();
