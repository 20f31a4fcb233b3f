ALTER TABLE key_packages RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_cost_delay,
  autovacuum_analyze_scale_factor);
ALTER TABLE audit_events ADD CONSTRAINT audit_events_actor_fkey FOREIGN KEY (actor) REFERENCES devices (id);
ALTER TABLE audit_events ADD CONSTRAINT audit_events_device_id_fkey FOREIGN KEY (device_id) REFERENCES devices (id);
ALTER TABLE key_packages ADD CONSTRAINT key_packages_reserved_by_fkey FOREIGN KEY (reserved_by) REFERENCES devices (id);
