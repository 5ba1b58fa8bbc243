-- The restored database takes the name of the present one, in one transaction: whatever happens, exactly one has it.
-- Nodes come back within milliseconds, so nothing is waited for in between: a rename keeps new sessions out while it
-- gives the old ones five seconds to end, and fails when one had come just before it.
DO $$
BEGIN
    FOR attempt IN 1 .. 20 LOOP
        PERFORM pg_stat_clear_snapshot();
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('lyttle', 'lyttle_restoring');
        BEGIN
            ALTER DATABASE lyttle RENAME TO lyttle_replaced;
            ALTER DATABASE lyttle_restoring RENAME TO lyttle;
            RETURN;
        EXCEPTION WHEN object_in_use THEN
            NULL;
        END;
    END LOOP;
    RAISE EXCEPTION 'sessions keep coming to the database lyttle; pg_stat_activity names them';
END $$;
