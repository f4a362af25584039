// Does one thing with node-postgres and writes the answer to stdout; the login is in libpq's variables.
'use strict';
const { Client } = require('pg');
const { from, to } = require('pg-copy-streams');
const { pipeline } = require('stream/promises');

async function connected() {
  const client = new Client();
  await client.connect();
  return client;
}

async function query(text) {
  const client = await connected();
  const result = await client.query({ text, rowMode: 'array' });
  await client.end();
  return result.rows[0][0];
}

async function copy(table) {
  const client = await connected();
  await pipeline(process.stdin, client.query(from(`COPY ${table} FROM STDIN`)));
  const parts = [];
  for await (const part of client.query(to(`COPY ${table} TO STDOUT`))) parts.push(part);
  await client.end();
  return Buffer.concat(parts);
}

async function listen(channel, payload) {
  const client = await connected();
  const heard = new Promise((resolve) => client.on('notification', (message) => resolve(message.payload)));
  await client.query(`LISTEN ${channel}`);
  const other = await connected();
  await other.query('SELECT pg_notify($1, $2)', [channel, payload]);
  const answer = await heard;
  await other.end();
  await client.end();
  return answer;
}

async function cancel(text) {
  const client = await connected();
  const statement = new (require('pg').Query)(text);
  const failed = new Promise((resolve) => {
    statement.on('error', (error) => resolve(error.code));
    statement.on('end', () => resolve('it was not cancelled'));
  });
  client.query(statement);
  setTimeout(() => new Client().cancel(client, statement), 300);
  const code = await failed;
  await client.end();
  return code;
}

const [action, ...words] = process.argv.slice(2);
({ query, copy, listen, cancel })[action](...words).then(
  (answer) => process.stdout.write(answer, () => process.exit(0)),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
