import * as core from '@actions/core'
import { create } from 'artifact3'
import { DefaultArtifactClient } from 'artifact4'
import { readdirSync, statSync } from 'node:fs'
import { join, resolve } from 'node:path'

const name = core.getInput('name'), path = resolve(core.getInput('path')), upload = core.getInput('do') === 'upload'

const files = dir => readdirSync(dir).map(f => join(dir, f)).flatMap(f => statSync(f).isDirectory() ? files(f) : [f])

async function version3() {
  const client = create()
  await (upload ? client.uploadArtifact(name, files(path), path) : client.downloadArtifact(name, path))
}

async function version4() {
  // This client wants a server that looks like github.com's: the forges' own forks of
  // actions/upload-artifact do not.
  process.env.GITHUB_SERVER_URL = 'http://forge.localhost'
  const client = new DefaultArtifactClient()
  if (upload) {
    await client.uploadArtifact(name, files(path), path)
  } else {
    const { artifact } = await client.getArtifact(name)
    await client.downloadArtifact(artifact.id, { path })
  }
}

(core.getInput('api') === '3' ? version3() : version4()).catch(core.setFailed)
