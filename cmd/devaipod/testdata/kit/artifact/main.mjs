import * as core from '@actions/core'
import { create } from 'artifact3'
import { DefaultArtifactClient } from 'artifact4'
import { readdirSync, statSync } from 'node:fs'
import { join, resolve } from 'node:path'

const files = dir => readdirSync(dir).map(f => join(dir, f)).flatMap(f => statSync(f).isDirectory() ? files(f) : [f])
const name = core.getInput('name'), path = resolve(core.getInput('path')), upload = core.getInput('do') === 'upload'
try {
  if (core.getInput('api') === '3') {
    const client = create()
    await (upload ? client.uploadArtifact(name, files(path), path) : client.downloadArtifact(name, path))
  } else {
    // This client wants a server that looks like github.com's: that is all that the
    // forges' own forks of actions/upload-artifact change in it.
    process.env.GITHUB_SERVER_URL = 'http://forge.localhost'
    const client = new DefaultArtifactClient()
    await (upload ? client.uploadArtifact(name, files(path), path)
      : client.downloadArtifact((await client.getArtifact(name)).artifact.id, { path }))
  }
} catch (err) {
  core.setFailed(err)
}
