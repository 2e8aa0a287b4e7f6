// Two people exchange a file over the relay's page: node page.js URL FILE FOLDER script|plain
// Each has a browser of their own. Prints what they saw as JSON; with a fifth argument, a folder,
// it leaves screenshots there.
'use strict';
const path = require('path');
const {chromium} = require('playwright-core');

const [url, file, folder, mode, shots] = process.argv.slice(2);
const script = mode === 'script';
const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync'];

async function main() {
  const browser = await chromium.launch({executablePath: process.env.CHROMIUM, args: FLAGS});
  const complaints = [];
  const person = async () => {
    const context = await browser.newContext({javaScriptEnabled: script});
    context.setDefaultTimeout(10000);
    const page = await context.newPage();
    page.on('console', line => line.type() === 'error' && complaints.push(line.text()));
    page.on('pageerror', error => complaints.push(String(error)));
    page.on('dialog', dialog => dialog.type() === 'confirm' ? dialog.accept()
      : complaints.push('dialog: ' + dialog.message()));
    await page.goto(url);
    return page;
  };
  const shoot = async (page, name) => {
    if (shots) await page.screenshot({path: path.join(shots, `${mode}-${name}.png`)});
  };
  try {
    const look = page => page.evaluate(() => dispatchEvent(new Event('focus')));
    const [ana, bob] = await Promise.all([person(), person()]);
    const saw = {complaints, empty: await bob.locator('#list').innerText()};

    await ana.setInputFiles('#file', file);
    await ana.getByRole('button', {name: 'Send'}).click();
    if (script) {
      await ana.locator('#sent').getByText('Kept').waitFor();
      saw.progress = await ana.locator('#sent progress').evaluate(bar => bar.value / bar.max);
      saw.sent = await ana.locator('#sent li span').innerText();
    }
    saw.landed = ana.url();
    await ana.locator('#list tbody tr').waitFor();
    await shoot(ana, 'sent');

    if (!script) await bob.reload();
    await bob.locator('#list tbody tr').waitFor();  // with the script it comes by itself
    saw.listed = await bob.locator('#list tbody a').innerText();
    await shoot(bob, 'listed');

    const copying = bob.waitForEvent('download');
    await bob.locator('#list tbody a').click();
    const copy = await copying;
    await copy.saveAs(path.join(folder, 'copy'));

    const picking = bob.waitForEvent('download');
    await bob.getByRole('button', {name: 'Pick up the oldest'}).click();
    const picked = await picking;
    saw.name = picked.suggestedFilename();
    await picked.saveAs(path.join(folder, 'picked'));

    await (script ? look(bob) : bob.goto(url));
    await bob.getByText('Nothing is here yet.').waitFor();

    if (script) {
      await look(ana);
      await ana.getByText('Nothing is here yet.').waitFor();
      await ana.setInputFiles('#file', file);
      await ana.getByRole('button', {name: 'Send'}).click();
      await ana.locator('#list tbody tr').waitFor();
      await ana.getByRole('button', {name: 'Remove'}).click();
      await ana.getByText('Nothing is here yet.').waitFor();
      saw.removed = true;
    }
    console.log(JSON.stringify(saw));
  } finally {
    await browser.close();
  }
}

main().catch(error => {
  console.error(error);
  process.exitCode = 1;
});
