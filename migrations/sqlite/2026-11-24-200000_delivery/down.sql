DROP TABLE deliveries;
DROP TABLE envelopes;
DROP TABLE commits;
