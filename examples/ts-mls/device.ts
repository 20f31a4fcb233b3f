// A device of a Keypool server on ts-mls, to copy from: it registers, uploads KeyPackages, invites, joins, talks, commits with
// proofs, and leaves. It keeps everything in memory; a real client stores it, see docs/writing-a-client.md.
//
// npm install ts-mls@1.6.4 @noble/hashes

import {
  type ClientState,
  type KeyPackage,
  type MLSMessage,
  type PrivateKeyPackage,
  type Proposal,
  acceptAll,
  createApplicationMessage,
  createCommit,
  createGroup,
  createProposal,
  decodeMlsMessage,
  defaultCapabilities,
  emptyPskIndex,
  encodeMlsMessage,
  generateKeyPackageWithKey,
  getCiphersuiteFromName,
  getCiphersuiteImpl,
  joinGroup,
  mlsExporter,
  processMessage,
  proposeAddExternal,
} from "ts-mls";
import { makeKeyPackageRef } from "ts-mls/keyPackage.js";

type Package = { publicPackage: KeyPackage; privatePackage: PrivateKeyPackage };
type Name = { user: string; device: string };
export type Received = { joined: true } | { text: string } | { changed: true } | { unreadable: string };

const suite = await getCiphersuiteImpl(getCiphersuiteFromName("MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519"));

const utf8 = new TextEncoder();
const text = new TextDecoder();
const encode = (bytes: Uint8Array) => btoa(String.fromCharCode(...bytes));
const decode = (base64: string) => Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
const sha256 = async (bytes: Uint8Array) => new Uint8Array(await crypto.subtle.digest("SHA-256", Uint8Array.from(bytes)));

/** The proof that a device is a member in this epoch. */
const proof = (group: ClientState) =>
  mlsExporter(group.keySchedule.exporterSecret, "keypool commit proof", new Uint8Array(), 32, suite);

/** The default of ts-mls has no end, and the server accepts 90 days unless it says otherwise. */
function lifetime() {
  const now = BigInt(Math.floor(Date.now() / 1000));
  return { notBefore: now - 3_600n, notAfter: now + 14n * 86_400n };
}

/** A path of a group: its id is base64url there, and base64 everywhere else. */
function path(groupId: Uint8Array, what: string) {
  const id = encode(groupId).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return `/groups/${id}/${what}`;
}

/** The other members. A device's name has no slash; a user's may have some. */
function others(group: ClientState): Name[] {
  return group.ratchetTree.flatMap((node, index) => {
    if (node?.nodeType !== "leaf" || index === 2 * group.privatePath.leafIndex) return [];
    if (node.leaf.credential.credentialType !== "basic") return [];
    const name = text.decode(node.leaf.credential.identity);
    const slash = name.lastIndexOf("/");
    return [{ user: name.slice(0, slash), device: name.slice(slash + 1) }];
  });
}

export class Device {
  private packages: Package[] = [];
  private group: ClientState | undefined;

  private constructor(
    private readonly server: string,
    private readonly token: string,
    private readonly name: Name,
    /** One for all KeyPackages: the server accepts no second one from a device. */
    private readonly keys: { signKey: Uint8Array; publicKey: Uint8Array },
  ) {}

  /** A further device of a user shows a token of the user, or `keypool_link_` and the code that another device of the user made. */
  static async register(server: string, name: Name, shown?: string): Promise<Device> {
    const { token } = await call(server, shown, "POST", "/devices", name);
    return new Device(server, token, name, await suite.signature.keygen());
  }

  /** Uploads new KeyPackages. The answer lists those that the server refused, with the reasons. */
  async upload(count: number): Promise<any> {
    for (let n = 0; n < count; n++) this.packages.push(await this.keyPackage());
    const keypackages = this.packages.slice(-count).map(({ publicPackage }) =>
      // The message wraps the KeyPackage, as the server expects it.
      encode(encodeMlsMessage({ version: "mls10", wireformat: "mls_key_package", keyPackage: publicPackage })),
    );
    return this.call("POST", "/keypackages/upload", { keypackages });
  }

  /** Makes a group with this device as its only member. The server learns of it with its first Commit. */
  async found() {
    const { publicPackage, privatePackage } = await this.keyPackage();
    const id = crypto.getRandomValues(new Uint8Array(16));
    this.group = await createGroup(id, publicPackage, privatePackage, [], suite);
  }

  /** Adds all devices of a user: reserves a KeyPackage of each, and commits. The server spends them with the Commit. */
  async invite(user: string) {
    const { reservations } = await this.call("POST", "/keypackages/reserve", { target_user: user });
    const proposals = reservations.map(({ keypackage }: { keypackage: string }): Proposal => {
      const message = decodeMlsMessage(decode(keypackage), 0)?.[0];
      if (message?.wireformat !== "mls_key_package") throw new Error("the server handed out no KeyPackage");
      return { proposalType: "add", add: { keyPackage: message.keyPackage } };
    });
    const ids = reservations.map(({ reservation_id }: { reservation_id: string }) => reservation_id);
    await this.commit(proposals, ids);
  }

  /** Asks the members of the groups of its user to add this device, by a proposal from outside (RFC 9420, section 12.1.8). */
  async ask() {
    const { groups } = await this.call("GET", "/groups");
    for (const { group_id } of groups) {
      const id = decode(group_id);
      const { group_info, members, epoch } = await this.call("GET", path(id, "info"));
      const message = decodeMlsMessage(decode(group_info), 0)?.[0];
      if (message?.wireformat !== "mls_group_info") throw new Error("the server keeps no GroupInfo");
      // It only says which key this device has: a member adds a KeyPackage that it reserves.
      const { publicPackage, privatePackage } = await this.keyPackage();
      const proposal = await proposeAddExternal(message.groupInfo, publicPackage, privatePackage, suite);
      const body = { message: encode(encodeMlsMessage(proposal)), recipients: members, expected_epoch: epoch };
      await this.call("POST", path(id, "messages"), body);
    }
  }

  /** Replaces this device's keys in the group, and commits the proposals that it has. */
  async update() {
    await this.commit([], []);
  }

  /** Commits, and goes on in the next epoch once the server has accepted the Commit. */
  private async commit(proposals: Proposal[], reservations: string[]) {
    const group = this.current();
    const options = { extraProposals: proposals, ratchetTreeExtension: true };
    const { commit, welcome, newState } = await createCommit({ state: group, cipherSuite: suite }, options);
    // Without new members there is nobody whom a Welcome is for.
    const wrapped = welcome !== undefined && reservations.length > 0
      ? encode(encodeMlsMessage({ version: "mls10", wireformat: "mls_welcome", welcome }))
      : null;
    await this.call("POST", path(group.groupContext.groupId, "commits"), {
      commit: encode(encodeMlsMessage(commit)),
      welcome: wrapped,
      proof: encode(await proof(group)),
      next_proof_digest: encode(await sha256(await proof(newState))),
      reservations,
      recipients: others(group),
    });
    this.group = newState;
  }

  /** Sends a text, as the `keypool` command reads it. */
  async say(what: string) {
    const content = utf8.encode(JSON.stringify({ text: what }));
    const { privateMessage, newState } = await createApplicationMessage(this.current(), content, suite);
    this.group = newState;
    await this.send({ version: "mls10", wireformat: "mls_private_message", privateMessage });
  }

  /** Proposes to leave: another member commits it. */
  async leave() {
    const group = this.current();
    const remove: Proposal = { proposalType: "remove", remove: { removed: group.privatePath.leafIndex } };
    const { message, newState } = await createProposal(group, false, remove, suite);
    this.group = newState;
    await this.send(message);
  }

  /** Processes the queue, and acknowledges what it has processed. A real client stores its state before that. */
  async receive(): Promise<Received[]> {
    const { messages } = await this.call("GET", "/messages");
    const received: Received[] = [];
    for (const { kind, message, refusal } of messages) {
      if (kind === "unreadable") received.push({ unreadable: refusal.reason });
      else if (kind === "welcome") received.push(await this.join(decode(message)));
      else received.push(await this.process(decode(message)));
    }
    await this.call("POST", "/messages/ack", { ids: messages.map(({ id }: { id: number }) => id) });
    return received;
  }

  private async join(bytes: Uint8Array): Promise<Received> {
    const message = decodeMlsMessage(bytes, 0)?.[0];
    if (message?.wireformat !== "mls_welcome") throw new Error("the server delivered no Welcome");
    const refs = message.welcome.secrets.map(({ newMember }) => encode(newMember));
    for (const { publicPackage, privatePackage } of this.packages) {
      if (!refs.includes(encode(await makeKeyPackageRef(publicPackage, suite.hash)))) continue;
      this.group = await joinGroup(message.welcome, publicPackage, privatePackage, emptyPskIndex, suite);
      return { joined: true };
    }
    throw new Error("the private keys for this Welcome are gone");
  }

  private async process(bytes: Uint8Array): Promise<Received> {
    const message = decodeMlsMessage(bytes, 0)?.[0];
    if (message?.wireformat !== "mls_private_message" && message?.wireformat !== "mls_public_message") {
      throw new Error("the server delivered no message of a group");
    }
    const processed = await processMessage(message, this.current(), emptyPskIndex, acceptAll, suite);
    this.group = processed.newState;
    if (processed.kind === "newState") return { changed: true };
    const content = JSON.parse(text.decode(processed.message));
    // The `keypool` command also sends the group's name.
    return content.text === undefined ? { changed: true } : { text: content.text };
  }

  private async keyPackage(): Promise<Package> {
    const identity = utf8.encode(`${this.name.user}/${this.name.device}`);
    const credential = { credentialType: "basic", identity } as const;
    return generateKeyPackageWithKey(credential, defaultCapabilities(), lifetime(), [], this.keys, suite);
  }

  private current(): ClientState {
    if (this.group === undefined) throw new Error("this device is in no group");
    return this.group;
  }

  private async send(message: MLSMessage) {
    const group = this.current();
    const body = { message: encode(encodeMlsMessage(message)), recipients: others(group) };
    await this.call("POST", path(group.groupContext.groupId, "messages"), body);
  }

  private call(method: string, path: string, body?: object) {
    return call(this.server, this.token, method, path, body);
  }
}

/** Makes a call. A problem of the server becomes an error with its type and detail. */
async function call(server: string, token: string | undefined, method: string, path: string, body?: object) {
  const headers: Record<string, string> = { "Content-Type": "application/json" };
  if (token !== undefined) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(server + path, { method, headers, ...(body && { body: JSON.stringify(body) }) });
  const json = await answer.json();
  if (!answer.ok) throw new Error(`${json.type}: ${json.detail}`);
  return json;
}
