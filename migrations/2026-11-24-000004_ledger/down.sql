DROP FUNCTION ledger_roll_up(uuid, uuid);
DROP FUNCTION ledger_post(uuid, uuid, text, text[], text[], numeric[]);
DROP FUNCTION ledger_balance(uuid, uuid);
DROP TABLE ledger_checkpoints;
DROP TABLE postings;
DROP TABLE journal_entries;
DROP TABLE ledger_accounts;
DROP FUNCTION ledger_refuse_change();
DROP FUNCTION ledger_refuse_unbalanced();
