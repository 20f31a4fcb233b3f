// A hostile device on a foreign MLS stack: ts-mls. Each line of its input is a call, `{"call": NAME, "with": {…}}`, and is
// answered with a line: `{"answer": …}` or `{"failure": …}`. Argument: the server's address.
//
// It uses the public API of ts-mls, on states that it has altered. Only the leaf of an Update proposal, which that API does
// not make, is made with the inner modules of ts-mls.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import {
  type CiphersuiteImpl,
  type ClientState,
  type KeyPackage,
  type LeafNode,
  type Lifetime,
  type MLSMessage,
  type PrivateKeyPackage,
  type Proposal,
  acceptAll,
  createApplicationMessage,
  createCommit,
  createGroup,
  createGroupInfoWithExternalPubAndRatchetTree,
  createProposal,
  decodeMlsMessage,
  defaultCapabilities,
  defaultLifetime,
  emptyPskIndex,
  encodeMlsMessage,
  generateKeyPackage,
  generateKeyPackageWithKey,
  getCiphersuiteFromName,
  getCiphersuiteImpl,
  joinGroup,
  joinGroupExternal,
  mlsExporter,
  processMessage,
  proposeAddExternal,
} from "ts-mls";
import { signWithLabel } from "ts-mls/crypto/signature.js";
import { makeKeyPackageRef } from "ts-mls/keyPackage.js";
import { type LeafNodeTBS, encodeLeafNodeTBS } from "ts-mls/leafNode.js";

type Keys = { signKey: Uint8Array; publicKey: Uint8Array };
type Package = { publicPackage: KeyPackage; privatePackage: PrivateKeyPackage };

/** What a leaf says that is not true: another identity, or a signature key that the directory does not have. */
type Lie = { identity?: string; new_key?: boolean };

const server = process.argv[2];
assert(server !== undefined, "usage: attacker.js SERVER");
const suite = await getCiphersuiteImpl(getCiphersuiteFromName("MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519"));

const encode = (bytes: Uint8Array) => Buffer.from(bytes).toString("base64");
const decode = (text: string) => Uint8Array.from(Buffer.from(text, "base64"));
const credential = (identity: string) => ({ credentialType: "basic", identity: Buffer.from(identity) }) as const;

function devices(names: string[]) {
  return names.map((name) => {
    const [user, device] = name.split("/");
    return { user, device };
  });
}

/** The state of a device whose own leaf says something else. */
function altered(state: ClientState, change: Partial<LeafNode>): ClientState {
  const ratchetTree = state.ratchetTree.slice();
  const at = 2 * state.privatePath.leafIndex;
  const own = ratchetTree[at];
  assert(own?.nodeType === "leaf");
  ratchetTree[at] = { nodeType: "leaf", leaf: { ...own.leaf, ...change } as LeafNode };
  return { ...state, ratchetTree };
}

/** A suite that signs leaves by one key, and all else by the key that it is given. */
function signingLeavesBy(leafKey: Uint8Array): CiphersuiteImpl {
  const label = Buffer.from("MLS 1.0 LeafNodeTBS");
  const isLeaf = (message: Uint8Array) => label.equals(message.subarray(1, 1 + label.length));
  const sign = (key: Uint8Array, message: Uint8Array) =>
    suite.signature.sign(isLeaf(message) ? leafKey : key, message);
  return { ...suite, signature: { ...suite.signature, sign } };
}

/** What members of an epoch show for being so. */
const proof = (state: ClientState) =>
  mlsExporter(state.keySchedule.exporterSecret, "keypool commit proof", new Uint8Array(), 32, suite);

class Attacker {
  private name = "";
  private token = "";
  private keys: Keys | undefined;
  private packages: Package[] = [];
  private group: ClientState | undefined;
  /** The group before its last Commit, in which those are who refused it. */
  private before: ClientState | undefined;

  /** Registers a device, which uploads honest KeyPackages. */
  async register({ name, count }: { name: string; count: number }) {
    const [device] = devices([name]);
    const registered = await this.asked("POST", "/devices", device);
    return this.become({ name, token: registered.token, count });
  }

  /** Acts as a device whose token it has, with a signature key of its own. Answers what the server says to the upload. */
  async become({ name, token, count }: { name: string; token: string; count: number }) {
    [this.name, this.token, this.packages] = [name, token, []];
    this.keys = await suite.signature.keygen();
    for (let n = 0; n < count; n++) this.packages.push(await this.package({}));
    const keypackages = this.packages.map(({ publicPackage }) =>
      encode(encodeMlsMessage({ version: "mls10", wireformat: "mls_key_package", keyPackage: publicPackage })),
    );
    return this.asked("POST", "/keypackages/upload", { keypackages });
  }

  /** Uploads two KeyPackages each: with a lifetime of ts-mls's own, and with a signature key that ts-mls makes for each. */
  async upload_with_defaults() {
    const keys = this.keys;
    assert(keys !== undefined);
    const made = async (lifetime: Lifetime, one: Keys | undefined) => {
      const named = credential(this.name);
      const { publicPackage } = one === undefined
        ? await generateKeyPackage(named, defaultCapabilities(), lifetime, [], suite)
        : await generateKeyPackageWithKey(named, defaultCapabilities(), lifetime, [], one, suite);
      return encode(encodeMlsMessage({ version: "mls10", wireformat: "mls_key_package", keyPackage: publicPackage }));
    };
    const [now, upload] = [BigInt(Math.floor(Date.now() / 1000)), "/keypackages/upload"];
    const fits = { notBefore: now - 3_600n, notAfter: now + 14n * 86_400n };
    return {
      lifetime: await this.asked("POST", upload, { keypackages: [await made(defaultLifetime, keys)] }),
      keys: await this.asked("POST", upload, { keypackages: [await made(fits, undefined), await made(fits, undefined)] }),
    };
  }

  /** Acts with the token of a device from now on. */
  async steal({ token }: { token: string }) {
    this.token = token;
  }

  /** Joins the group whose Welcome came last. */
  async join() {
    const { messages } = await this.asked("GET", "/messages");
    const welcomes = messages.filter(({ kind }: { kind: string }) => kind === "welcome");
    const message = decodeMlsMessage(decode(welcomes.at(-1).message), 0)?.[0];
    assert(message?.wireformat === "mls_welcome");
    const refs = message.welcome.secrets.map(({ newMember }) => encode(newMember));
    for (const { publicPackage, privatePackage } of this.packages) {
      if (refs.includes(encode(await makeKeyPackageRef(publicPackage, suite.hash)))) {
        this.group = await joinGroup(message.welcome, publicPackage, privatePackage, emptyPskIndex, suite);
      }
    }
    const ids = messages.map(({ id }: { id: number }) => id);
    await this.asked("POST", "/messages/ack", { ids });
  }

  /** Takes in what others have sent to its group, whatever that says. */
  async take_in() {
    const { messages } = await this.asked("GET", "/messages");
    for (const { message } of messages) {
      const read = decodeMlsMessage(decode(message), 0)?.[0];
      assert(read?.wireformat === "mls_private_message");
      this.group = (await processMessage(read, this.state(), emptyPskIndex, acceptAll, suite)).newState;
    }
  }

  /** Makes a group of its own. */
  async found({ id, ...lie }: { id: string } & Lie) {
    const { publicPackage, privatePackage } = await this.package(lie);
    this.group = await createGroup(Buffer.from(id), publicPackage, privatePackage, [], suite);
  }

  /** Adds a user as an honest member does. */
  async invite({ user }: { user: string }) {
    const { reservations } = await this.asked("POST", "/keypackages/reserve", { target_user: user });
    const [reservation] = reservations;
    const message = decodeMlsMessage(decode(reservation.keypackage), 0)?.[0];
    assert(message?.wireformat === "mls_key_package");
    const add: Proposal = { proposalType: "add", add: { keyPackage: message.keyPackage } };
    await this.commit(this.state(), { proposals: [add], reservations: [reservation.reservation_id], recipients: [] });
  }

  /** Adds a device that says that it is somebody's, with a key of the attacker's own. */
  async add({ identity, recipients }: { identity: string; recipients: string[] }) {
    const { publicPackage } = await this.package({ identity, new_key: true });
    const add: Proposal = { proposalType: "add", add: { keyPackage: publicPackage } };
    await this.commit(this.state(), { proposals: [add], recipients });
  }

  /** Removes a member, and adds a device of the same name with a key of the attacker's own, in one Commit. */
  async replace({ identity, recipients }: { identity: string; recipients: string[] }) {
    const state = this.state();
    const isMember = (node: (typeof state.ratchetTree)[number]) =>
      node?.nodeType === "leaf" && node.leaf.credential.credentialType === "basic" &&
      Buffer.from(node.leaf.credential.identity).toString() === identity;
    const removed = state.ratchetTree.findIndex(isMember) / 2;
    assert(removed >= 0, `${identity} is no member`);
    const { publicPackage } = await this.package({ identity, new_key: true });
    const proposals: Proposal[] = [
      { proposalType: "remove", remove: { removed } },
      { proposalType: "add", add: { keyPackage: publicPackage } },
    ];
    await this.commit(state, { proposals, recipients });
  }

  /** Commits a path whose leaf lies. */
  async change({ recipients, ...lie }: { recipients: string[] } & Lie) {
    const { change, signKey } = await this.leaf(lie);
    await this.commit(altered(this.state(), change), { recipients, using: signingLeavesBy(signKey) });
  }

  /** Proposes a leaf that lies. */
  async propose({ recipients, ...lie }: { recipients: string[] } & Lie) {
    const state = this.state();
    const { change, signKey } = await this.leaf(lie);
    const node = altered(state, change).ratchetTree[2 * state.privatePath.leafIndex];
    assert(node?.nodeType === "leaf");
    const { signaturePublicKey, capabilities, extensions } = node.leaf;
    const hpke = await suite.hpke.generateKeyPair();
    const tbs = {
      leafNodeSource: "update",
      hpkePublicKey: await suite.hpke.exportPublicKey(hpke.publicKey),
      signaturePublicKey,
      credential: node.leaf.credential,
      capabilities,
      extensions,
      groupId: state.groupContext.groupId,
      leafIndex: state.privatePath.leafIndex,
    } as const satisfies LeafNodeTBS;
    const signature = await signWithLabel(signKey, "LeafNodeTBS", encodeLeafNodeTBS(tbs), suite.signature);
    const update: Proposal = { proposalType: "update", update: { leafNode: { ...tbs, signature } } };
    const { message } = await createProposal(state, false, update, suite);
    await this.send(state, message, recipients);
  }

  /** Proposes to add a device that says that it is somebody's, with a key of the attacker's own. */
  async propose_add({ identity, recipients }: { identity: string; recipients: string[] }) {
    const state = this.state();
    const { publicPackage } = await this.package({ identity, new_key: true });
    const add: Proposal = { proposalType: "add", add: { keyPackage: publicPackage } };
    const { message } = await createProposal(state, false, add, suite);
    await this.send(state, message, recipients);
  }

  /** Asks from outside, as somebody, to be added to the group. */
  async ask_to_join({ identity, recipients }: { identity: string; recipients: string[] }) {
    const state = this.state();
    const info = await createGroupInfoWithExternalPubAndRatchetTree(state, [], suite);
    const { publicPackage, privatePackage } = await this.package({ identity, new_key: true });
    await this.send(state, await proposeAddExternal(info, publicPackage, privatePackage, suite), recipients);
  }

  /** Comes in by an external Commit, in the place of the leaf of somebody, if so. */
  async enter({ recipients, replaces, ...lie }: { recipients: string[]; replaces?: string } & Lie) {
    const before = this.state();
    const info = await createGroupInfoWithExternalPubAndRatchetTree(before, [], suite);
    const { publicPackage, privatePackage } = await this.package(lie);
    const compareKeyPackageToLeafNode = (_: KeyPackage, leaf: LeafNode) =>
      leaf.credential.credentialType === "basic" && Buffer.from(leaf.credential.identity).toString() === replaces;
    const { keyPackageEqualityConfig, ...others } = before.clientConfig;
    const config = { ...others, keyPackageEqualityConfig: { ...keyPackageEqualityConfig, compareKeyPackageToLeafNode } };
    const { publicMessage, newState } = await joinGroupExternal(
      info, publicPackage, privatePackage, replaces !== undefined, suite, undefined, config,
    );
    const message: MLSMessage = { version: "mls10", wireformat: "mls_public_message", publicMessage };
    const groupInfo = await createGroupInfoWithExternalPubAndRatchetTree(newState, [], suite);
    await this.sendCommit(message, newState, {
      recipients: devices(recipients),
      group_info: encode(encodeMlsMessage({ version: "mls10", wireformat: "mls_group_info", groupInfo })),
      members: devices([...recipients, this.name]),
    });
  }

  /** Says something in the group, or in the epoch before its last Commit. */
  async say({ text, recipients, before }: { text: string; recipients: string[]; before?: boolean }) {
    const state = before === true ? this.before : this.group;
    assert(state !== undefined);
    const { privateMessage, newState } = await createApplicationMessage(state, Buffer.from(text), suite);
    this[before === true ? "before" : "group"] = newState;
    await this.send(state, { version: "mls10", wireformat: "mls_private_message", privateMessage }, recipients);
  }

  private state(): ClientState {
    assert(this.group !== undefined, "it is in no group");
    return this.group;
  }

  private async leaf({ identity, new_key }: Lie) {
    assert(this.keys !== undefined);
    const keys = new_key === true ? await suite.signature.keygen() : this.keys;
    const change = { credential: credential(identity ?? this.name), signaturePublicKey: keys.publicKey };
    return { change, signKey: keys.signKey };
  }

  private async package(lie: Lie): Promise<Package> {
    const { change, signKey } = await this.leaf(lie);
    const now = BigInt(Math.floor(Date.now() / 1000));
    const lifetime = { notBefore: now - 3_600n, notAfter: now + 14n * 86_400n };
    const keys = { signKey, publicKey: change.signaturePublicKey };
    return generateKeyPackageWithKey(change.credential, defaultCapabilities(), lifetime, [], keys, suite);
  }

  /** Commits in a state, sends the Commit to the server, which sees no leaf, and goes on in the epoch after it. */
  private async commit(
    state: ClientState,
    { proposals = [], reservations = [], recipients, using = suite }:
      { proposals?: Proposal[]; reservations?: string[]; recipients: string[]; using?: CiphersuiteImpl },
  ) {
    const options = { extraProposals: proposals, ratchetTreeExtension: true };
    const made = await createCommit({ state, cipherSuite: using }, options);
    // Without reservations, nobody is to get the Welcome.
    const welcome = reservations.length > 0 && made.welcome !== undefined
      ? encode(encodeMlsMessage({ version: "mls10", wireformat: "mls_welcome", welcome: made.welcome }))
      : undefined;
    await this.sendCommit(made.commit, made.newState, { welcome, reservations, recipients: devices(recipients) });
  }

  private async sendCommit(commit: MLSMessage, next: ClientState, body: object) {
    const before = this.state();
    await this.asked("POST", `${this.path(before)}/commits`, {
      ...body,
      commit: encode(encodeMlsMessage(commit)),
      proof: encode(await proof(before)),
      next_proof_digest: createHash("sha256").update(await proof(next)).digest("base64"),
    });
    [this.before, this.group] = [before, next];
  }

  private async send(state: ClientState, message: MLSMessage, recipients: string[]) {
    const body = { message: encode(encodeMlsMessage(message)), recipients: devices(recipients) };
    await this.asked("POST", `${this.path(state)}/messages`, body);
  }

  private path(state: ClientState) {
    return `/groups/${Buffer.from(state.groupContext.groupId).toString("base64url")}`;
  }

  /** The answer of the server to a request that it has to take. */
  private async asked(method: string, path: string, body?: object) {
    const authorization: Record<string, string> = this.token === "" ? {} : { Authorization: `Bearer ${this.token}` };
    const answer = await fetch(server + path, {
      method,
      headers: { "Content-Type": "application/json", ...authorization },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await answer.text();
    assert(answer.ok, `${method} ${path}: ${answer.status} ${text}`);
    return JSON.parse(text);
  }
}

const attacker = new Attacker();
for await (const line of createInterface({ input: process.stdin })) {
  const { call, with: given } = JSON.parse(line);
  let said: object;
  try {
    const method = attacker[call as keyof Attacker] as (given: object) => Promise<unknown>;
    said = { answer: (await method.call(attacker, given)) ?? null };
  } catch (error) {
    said = { failure: error instanceof Error ? (error.stack ?? error.message) : String(error) };
  }
  console.log(JSON.stringify(said));
}
