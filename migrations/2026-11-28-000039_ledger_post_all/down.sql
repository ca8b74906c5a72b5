DROP FUNCTION ledger_post_all;
